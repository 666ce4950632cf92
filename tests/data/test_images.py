import dataclasses

import numpy as np
import pytest
import torch

from lrc.data import Images, batches
from lrc.data.batches import crop_flip
from lrc.data.images import check_same_classes
from lrc.hierarchy import Hierarchy, Level
from lrc.utils.errors import InputError

CLASSES = ("ant", "bee", "car")
KINDS = Hierarchy(CLASSES, (Level("kind", ("insects", "vehicles"), (0, 0, 1)),), "made up")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(n=30, side=8, seed=0):
    x = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=seeded(seed))
    return Images(x, torch.arange(n) % 3, CLASSES, KINDS)


def numbered(n):
    """Images that tell their own number: every pixel of the image i is i."""
    return Images(
        torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 8, 8), torch.zeros(n).long(), ("one",)
    )


def naive_crop_flip(image, top, left, flip):
    """One image at a time, with nothing but slices."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 8, width + 8, dtype=image.dtype)
    padded[:, 4 : 4 + height, 4 : 4 + width] = image
    cropped = padded[:, top : top + height, left : left + width]
    return torch.stack([cropped[:, :, width - 1 - i] for i in range(width)], 2) if flip else cropped


# Images


def test_float_is_exact_and_channels_last():
    images = make()
    for x in (images.float(), images.float([4, 2]), images.float(torch.tensor([4, 2]))):
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images.float([4, 2]), torch.stack([images.x[4], images.x[2]]) / 255)
    levels = Images(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), torch.zeros(1).long(), ("a",))
    assert torch.equal(levels.float().flatten(), torch.arange(256) / 255)


def test_memory_mapped_bytes_are_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", make().x.permute(0, 2, 3, 1).numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c")).permute(0, 3, 1, 2)
    images = Images(mapped, make().y, CLASSES)
    assert images.x.data_ptr() == images.subset(5).x.data_ptr() == mapped.data_ptr()
    assert torch.equal(images.float(), make().float())


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), "float32"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), r"\(3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "one label an image"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), "one label an image"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 3]), "label 3 of image 1 .* 0..2"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 0]), "label -1 of image 0 .* 0..2"),
    ],
)
def test_images_refuse_what_does_not_fit(x, y, message):
    with pytest.raises(InputError, match=message):
        Images(x, y, CLASSES)


def test_images_refuse_a_hierarchy_of_other_classes():
    with pytest.raises(InputError, match="same names in the same order"):
        dataclasses.replace(make(), classes=("bee", "ant", "car"))


def test_subset():
    images = make()
    assert torch.equal(images.subset(7).x, images.x[:7])
    assert len(images.subset(0)) == len(images.subset([])) == 0
    for which in ([5, 1, 5], torch.tensor([5, 1, 5]), np.array([5, 1, 5])):
        assert torch.equal(images.subset(which).x, images.x[[5, 1, 5]])
        assert torch.equal(images.subset(which).y, images.y[[5, 1, 5]])
    assert torch.equal(images.subset(images.y == 2).x, images.x[2::3])
    assert images.subset(7).hierarchy == KINDS


@pytest.mark.parametrize("which", [31, -1, [30], torch.tensor([-31])])
def test_subset_refuses_what_is_not_there(which):
    with pytest.raises(InputError, match="there are 30|the 30 images"):
        make().subset(which)


@pytest.mark.parametrize("classes", [["car", "ant"], [2, 0]])
def test_select_relabels_in_the_order_given(classes):
    images = make()
    chosen = images.select(classes)
    assert chosen.classes == ("car", "ant")
    assert chosen.hierarchy.groups() == [[1], [0]]
    kept = images.y != 1
    assert torch.equal(chosen.x, images.x[kept])
    assert torch.equal(chosen.y, torch.where(images.y[kept] == 2, 0, 1))


@pytest.mark.parametrize("classes", [["cow"], [3], [], ["ant", 0]])
def test_select_refuses_what_is_not_there(classes):
    with pytest.raises(InputError, match="no class|each once"):
        make().select(classes)


@pytest.mark.parametrize(("n", "expected"), [(6, [2, 2, 2]), (0, [0, 0, 0]), (30, [10, 10, 10])])
def test_split_is_stratified(n, expected):
    rest, held = make().split(n, seed=1)
    assert held.y.bincount(minlength=3).tolist() == expected
    assert len(rest) == 30 - n


def test_split_follows_class_sizes_that_differ():
    images = dataclasses.replace(make(100), y=torch.tensor([0] * 60 + [1] * 30 + [2] * 10))
    assert images.split(20)[1].y.bincount().tolist() == [12, 6, 2]


def test_split_is_a_partition_that_the_seed_decides():
    images = numbered(200)
    rest, held = images.split(50, seed=3)
    first = [part.x[:, 0, 0, 0].tolist() for part in (rest, held)]
    assert sorted(first[0] + first[1]) == list(range(200))
    assert [sorted(part) for part in first] == first
    assert first[1] == images.split(50, seed=3)[1].x[:, 0, 0, 0].tolist()
    assert first[1] != images.split(50, seed=4)[1].x[:, 0, 0, 0].tolist()
    assert first[1] != list(range(50))


def test_split_refuses_more_than_there_are():
    with pytest.raises(InputError, match="31 images to hold out, there are 30"):
        make().split(31)


def test_to_moves_both_parts():
    moved = make().to("cpu")
    assert torch.equal(moved.x, make().x)
    assert repr(moved) == "Images(30 of 3x8x8, 3 classes)"


# from_arrays


def test_from_arrays_keeps_bytes_and_layout():
    x = make().x.permute(0, 2, 3, 1).contiguous().numpy()
    images = Images.from_arrays(x, [0] * 30, CLASSES, hierarchy=KINDS)
    assert images.x.data_ptr() == x.ctypes.data
    assert torch.equal(images.x, make().x)
    assert torch.equal(Images.from_arrays(list(x), np.zeros(30, np.int32), CLASSES).x, make().x)
    assert torch.equal(Images.from_arrays(x.astype(np.int64), [0] * 30, CLASSES).x, make().x)
    assert torch.equal(Images.from_arrays(x[..., ::-1], [0] * 30, CLASSES).x, make().x.flip(1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_from_arrays_takes_floats_in_0_1(dtype):
    x = (np.arange(256).reshape(1, 16, 16, 1) / 255).astype(dtype)
    images = Images.from_arrays(x, [0], ("a",), channels=1)
    assert images.x.flatten().tolist() == list(range(256))


def test_from_arrays_does_not_warn_about_read_only_arrays():
    x = np.zeros((1, 4, 4, 3), np.uint8)
    x.flags.writeable = False
    assert len(Images.from_arrays(x, [0], ("a",))) == 1


RGB = np.zeros((2, 4, 4, 3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (RGB + 255.0, r"0..255|255\.0 .*divide by 255"),
        (RGB - 1.0, "undo any normalization"),
        (RGB + 300.0, "undo any normalization"),
        (RGB + np.nan, "nan .*undo any normalization"),
        (RGB + 0.5, "between the levels"),
        ((RGB + 256).astype(np.int64), "256"),
        (RGB.astype(bool), "bool"),
        (RGB[..., :1], "greyscale to RGB"),
        (RGB[..., 0], "greyscale to RGB"),
        (RGB[0], r"x\[None\]"),
        (RGB.transpose(0, 3, 1, 2), "move the channels to the end"),
        (np.zeros((2, 4, 4, 4)), "drop transparency"),
        ([np.zeros((4, 4, 3)), np.zeros((5, 4, 3))], r"mixed size: image 1 has shape \(5, 4, 3\)"),
        ([np.zeros((4, 4, 3)), np.zeros((4, 4))], "mixed size: image 1"),
    ],
)
def test_from_arrays_refuses_what_is_no_8_bit_colour(x, message):
    with pytest.raises(InputError, match=message) as caught:
        Images.from_arrays(x, [0, 0], CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("y", [[0.0, 1.0], [[0], [1]], [True, False], ["ant", "bee"]])
def test_from_arrays_refuses_labels_that_are_no_integers(y):
    with pytest.raises(InputError, match="one integer an image"):
        Images.from_arrays(RGB, y, CLASSES)


# batches


def test_batches_in_order():
    images = make(10)
    parts = list(batches(images, 4))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), images.float())
    assert torch.equal(torch.cat([y for _, y in parts]), images.y)
    assert [len(x) for x, _ in batches(images, 4, drop_last=True)] == [4, 4]
    assert [len(x) for x, _ in batches(images, 20, drop_last=True)] == []


def test_batches_are_channels_last_floats_in_0_1():
    for x, y in batches(make(), 7, shuffle=True, augment=True, generator=seeded()):
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= x.min() and x.max() <= 1


def test_shuffled_batches_hold_each_image_once():
    images = numbered(100)
    x = torch.cat([x for x, _ in batches(images, 32, shuffle=True, generator=seeded())])
    numbers = (255 * x[:, 0, 0, 0]).round().long()
    assert sorted(numbers.tolist()) == list(range(100))
    assert numbers.tolist() != list(range(100))


def test_shuffling_keeps_labels_with_images():
    images = dataclasses.replace(numbered(100), y=torch.arange(100), classes=tuple(map(str, range(100))))
    for x, y in batches(images, 32, shuffle=True, generator=seeded()):
        assert torch.equal((255 * x[:, 0, 0, 0]).round().long(), y)


def epoch(batch_size, seed):
    return torch.cat([x for x, _ in batches(make(), batch_size, shuffle=True, augment=True, generator=seeded(seed))])


def test_the_generator_alone_decides_an_epoch():
    assert torch.equal(epoch(8, seed=5), epoch(8, seed=5))
    assert torch.equal(epoch(8, seed=5), epoch(30, seed=5))
    assert not torch.equal(epoch(8, seed=5), epoch(8, seed=6))


def test_random_numbers_are_drawn_at_the_call():
    generator = seeded(5)
    late, state = batches(make(), 8, shuffle=True, augment=True, generator=generator), generator.get_state()
    generator.manual_seed(99)
    assert torch.equal(torch.cat([x for x, _ in late]), epoch(8, seed=5))
    assert not torch.equal(state, seeded(5).get_state())


def test_batches_leave_the_images_alone():
    images, before = make(), make().x.clone()
    for x, _ in batches(images, 30):
        x.zero_()
    for x, _ in batches(images, 30, augment=True):
        x.zero_()
    assert torch.equal(images.x, before)


def test_batches_refuse_a_batch_size_of_0():
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, not 0"):
        batches(make(), 0)


# crop and flip


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 9)])
def test_crop_flip_agrees_with_one_image_at_a_time(shape):
    b = 162
    x = torch.randint(1, 256, (b, *shape), dtype=torch.uint8, generator=seeded())
    place = torch.arange(b)
    top, left, flip = place % 9, place // 9 % 9, place >= 81  # every case once
    expected = [naive_crop_flip(*case) for case in zip(x, top.tolist(), left.tolist(), flip, strict=True)]
    for strides in (x, x.to(memory_format=torch.channels_last)):
        assert torch.equal(crop_flip(strides, top=top, left=left, flip=flip), torch.stack(expected))


def test_crop_pads_with_zeros():
    x = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    corner = crop_flip(x, top=torch.tensor([0]), left=torch.tensor([8]), flip=torch.tensor([False]))
    assert corner[0, :, 4:, :4].eq(255).all()
    assert corner.sum() == 255 * 3 * 16


def test_augmentation_draws_every_offset_and_both_directions():
    side, n = 16, 3000
    x = torch.arange(side * side, dtype=torch.int64).view(1, 1, side, side).to(torch.uint8)  # each pixel its own
    images = Images(x.expand(n, 3, side, side), torch.zeros(n).long(), ("one",))
    ((out, _),) = batches(images, n, augment=True, generator=seeded())
    pixels = (255 * out[:, 0]).round().long()
    a, b = pixels[:, side // 2, side // 2], pixels[:, side // 2, side // 2 - 1]
    flipped = b > a
    row, column = a // side, torch.where(flipped, b, a) % side
    assert abs(flipped.float().mean() - 0.5) < 0.05
    for offset in (row, column):
        count = offset.bincount(minlength=17)[4:13]
        assert count.sum() == n and (count / n - 1 / 9).abs().max() < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cpu_generator_gives_the_same_epoch_on_a_gpu():
    options = {"shuffle": True, "augment": True}
    here = list(batches(make(), 8, generator=seeded(), **options))
    there = list(batches(make().to("cuda"), 8, generator=seeded(), **options))
    for (x, y), (x_gpu, y_gpu) in zip(here, there, strict=True):
        assert x_gpu.is_cuda and y_gpu.is_cuda
        assert torch.equal(x, x_gpu.cpu()) and torch.equal(y, y_gpu.cpu())


def test_images_are_joined():
    x, y = torch.arange(5 * 3 * 4 * 4).reshape(5, 3, 4, 4).to(torch.uint8), torch.tensor([0, 1, 1, 0, 1])
    images = Images(x, y, ("cat", "dog"))
    both = images.subset([4, 0]).joined(images)
    assert torch.equal(both.x, x[[4, 0, 0, 1, 2, 3, 4]]) and torch.equal(both.y, y[[4, 0, 0, 1, 2, 3, 4]])
    with pytest.raises(InputError, match="cannot be joined"):
        images.joined(Images(x[..., :3], y, ("cat", "dog")))
    with pytest.raises(InputError, match="class 0 is 'cat' in one and 'dog' in the other"):
        images.joined(Images(x, y, ("dog", "cat")))


@pytest.mark.parametrize("other", [("ant", "bee"), ("ant", "bee", "car", "dog"), ("ant", "car", "bee"), ()])
def test_other_classes_are_told(other):
    check_same_classes(CLASSES, list(CLASSES), "here")
    with pytest.raises(InputError, match="^here: class . is .* in the other: give the same classes"):
        check_same_classes(CLASSES, other, "here")


def test_classes_belong_to_the_digest():
    images = make()
    other = dataclasses.replace(images, classes=("a", "b", "c"), hierarchy=None)
    assert images.digest() == make().digest() != other.digest()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("crane", "dog", "crane"), "class 0 and 2 are both called 'crane'"),
        ((), "at least one text"),
        ((0, 1, 2), "at least one text"),
        (["ant", "bee", "car"], "in a tuple"),
        ("abc", "in a tuple"),
    ],
)
def test_classes_have_names_of_their_own(unchecked, classes, message):
    with pytest.raises(InputError, match=message):
        Images(make().x, make().y, classes)


def test_images_refuse_what_is_no_tensor(unchecked):
    for x, y in ((None, make().y), (make().x.numpy(), make().y), (make().x, [0] * 30), (make().x, None)):
        with pytest.raises(InputError, match="expected"):
            Images(x, y, CLASSES)


@pytest.mark.parametrize(
    "which", [[0.5], torch.ones(29, dtype=torch.bool), np.ones(31, bool), [[0]], ["a"], None, "ab", [None], {}, 1.5]
)
def test_subset_refuses_what_are_no_indices(unchecked, which):
    with pytest.raises(InputError, match="expected whole numbers"):
        make().subset(which)


@pytest.mark.parametrize(
    "x",
    [
        None, 3, "ab", object(), [], [None, None], ["a", "b"], np.array([None, 1]), RGB.astype(object), RGB.astype(str),
        RGB.astype(complex), [np.zeros((4, 4, 3)), None], {"x": 1}, RGB.astype("M8[s]"), [[[1, 2], [3]]],
    ],
)  # fmt: skip
def test_from_arrays_refuses_what_is_no_array_of_numbers(unchecked, x):
    with pytest.raises(InputError) as caught:
        Images.from_arrays(x, [0, 0], CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("y", [None, 3, [None, 1], [[0], [1, 2]], np.array([0, 1], object), "ab", {}, ["0", "1"]])
def test_from_arrays_refuses_labels_that_are_no_numbers(unchecked, y):
    with pytest.raises(InputError, match="expected"):
        Images.from_arrays(RGB, y, CLASSES)


def test_from_arrays_takes_tensors():
    x = (make().x.permute(0, 2, 3, 1) / 255).requires_grad_()
    assert torch.equal(Images.from_arrays(x, make().y, CLASSES).x, make().x)
