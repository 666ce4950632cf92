"""Every classification builder of torchvision, shrunk: an affine network, whose W is its Jacobian."""

import json
import time
from collections.abc import Callable
from typing import Any

import architectures
import pytest
import torch
from linearizing import assert_close, images, lively, slim
from oracle import backward_map, oracle_map
from torch import Tensor, nn
from torchvision import models

from lrc.linearization import affine_map, local_map, superposition_error

NAMES = models.list_models(models)


def narrow(width: int, divisor: int) -> int:
    """Widths of a network with inverted bottlenecks, in multiples of 8."""
    return max(8, width // divisor // 8 * 8)


def shrink_convnext(build: Callable, settings: list, *args: Any, **options: Any) -> nn.Module:
    for s in settings:
        s.input_channels, s.num_layers = s.input_channels // 12, min(s.num_layers, 2)
        s.out_channels = s.out_channels and s.out_channels // 12
    return build(settings, *args, **options)


def shrink_densenet(build: Callable, growth: int, blocks: tuple, width: int, *args: Any, **options: Any) -> nn.Module:
    return build(growth // 8, tuple(min(n, 3) for n in blocks), width // 8, *args, **options)


def shrink_efficientnet(build: Callable, settings: list, *args: Any, **options: Any) -> nn.Module:
    for s in settings:
        s.input_channels, s.out_channels = narrow(s.input_channels, 4), narrow(s.out_channels, 4)
        s.num_layers = min(s.num_layers, 2)
    return build(settings, *args, **options)


def shrink_maxvit(build: Callable, **options: Any) -> nn.Module:
    sizes = {"stem_channels": 8, "block_channels": [8, 16], "block_layers": [1, 2], "head_dim": 4}
    return build(**options | sizes | {"partition_size": 2, "input_size": (32, 32)})


def shrink_regnet(build: Callable, params: Any, *args: Any, **options: Any) -> nn.Module:
    params.widths, params.depths = [w // 8 for w in params.widths], [min(d, 2) for d in params.depths]
    params.group_widths = [max(1, g // 8) for g in params.group_widths]
    return build(params, *args, **options)


def shrink_resnet(build: Callable, block: type, layers: list, *args: Any, **options: Any) -> nn.Module:
    return build(block, [2, 1, 1, 1], *args, **options)


def shrink_swin(build: Callable, embed_dim: int, depths: list, **options: Any) -> nn.Module:
    return build(embed_dim=embed_dim // 8, depths=[min(d, 2) for d in depths], **options)


def shrink_mnasnet(build: Callable, alpha: float, *args: Any, **options: Any) -> nn.Module:
    return build(alpha / 4, *args, **options)


def shrink_vgg(build: Callable, layers: str, batch_norm: bool, *args: Any, **options: Any) -> nn.Module:
    model = slim(build(layers, batch_norm, *args, **options))
    widths = [width if width == "M" else width // 8 for width in models.vgg.cfgs[layers]]
    model.features, model.classifier[0] = models.vgg.make_layers(widths, batch_norm), nn.Linear(64 * 49, 8)
    return model


def shrink_vit(build: Callable, hidden_dim: int, mlp_dim: int, patch_size: int, **options: Any) -> nn.Module:
    sizes = {"hidden_dim": hidden_dim // 16, "mlp_dim": mlp_dim // 16, "num_layers": 2, "image_size": 2 * patch_size}
    return build(patch_size=patch_size, **options | sizes)


SHRUNK = {
    "convnext": (models.convnext, "_convnext", shrink_convnext),
    "densenet": (models.densenet, "_densenet", shrink_densenet),
    "efficientnet": (models.efficientnet, "_efficientnet", shrink_efficientnet),
    "mnasnet": (models.mnasnet, "_mnasnet", shrink_mnasnet),
    "vgg": (models.vgg, "_vgg", shrink_vgg),
    "maxvit": (models.maxvit, "_maxvit", shrink_maxvit),
    "regnet": (models.regnet, "_regnet", shrink_regnet),
    "resn": (models.resnet, "_resnet", shrink_resnet),
    "wide_resnet": (models.resnet, "_resnet", shrink_resnet),
    "swin": (models.swin_transformer, "_swin_transformer", shrink_swin),
    "vit": (models.vision_transformer, "_vision_transformer", shrink_vit),
}
"""By how the names begin: the function that builders of a family call, and what stands before it here."""

SIZES = {"alexnet": 63, "inception": 75, "swin": 64, "vit_b_32": 64, "vit_l_32": 64, "vit_h_14": 28}


def small(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    for begin, (module, function, shrink) in SHRUNK.items():
        if name.startswith(begin):
            build = getattr(module, function)
            monkeypatch.setattr(module, function, lambda *a, s=shrink, b=build, **o: s(b, *a, **o))
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith(("maxvit", "regnet", "swin")) else "meta"):
        model = models.get_model(name, num_classes=5, **options)
        model = slim(model) if name == "alexnet" else model
    return lively(model)


@pytest.mark.parametrize("name", NAMES)
def test_builders_of_torchvision(name, monkeypatch):
    model = small(name, monkeypatch).eval().requires_grad_(False)
    size = next((size for begin, size in SIZES.items() if name.startswith(begin)), 32)
    for batchnorm in ("remove", "fold"):
        W, b = affine_map(model, (3, size, size), batchnorm=batchnorm, verify=batchnorm == "fold")
        expected = oracle_map(model, (3, size, size), batchnorm)
        assert W.flatten(1).abs().amax(1).min() > 0
        assert_close(W, expected[0])
        assert_close(b, expected[1])
    x = images(2, 3, size, size)
    J = backward_map(model, x)
    for n in (1, 2):
        assert_close(local_map(model, x[:n]), J[:n])


def test_there_are_eighty_builders():
    assert len(NAMES) == 80


def test_the_network_itself_is_not_affine(monkeypatch):
    assert superposition_error(small("vit_b_16", monkeypatch).eval(), (3, 32, 32)) > 0.01


# --- the table of the book -------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in architectures.ROWS.read_text(encoding="utf-8").splitlines()]


def test_the_page_of_the_book_is_what_the_rows_say():
    assert architectures.page(rows()) == architectures.PAGE.read_text(encoding="utf-8")
    assert all(architectures.right(row) == (row["status"] == "taken") for row in rows() if "errors" in row)
    assert all(row.get("rounding", 0) <= 1e-5 for row in rows())
    assert {row["name"] for row in rows() if row["library"] == "torchvision"} <= set(NAMES)


class Steep(nn.Module):
    """Its gradient moves by 1e-6 of itself with the last digit of a pixel; a sine of the brightness is no gate."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e10 * self.fc(x.flatten(1)))


def test_what_rounding_makes_of_a_map_is_told_from_a_wrong_one():
    model, shape = Steep().double(), (3, 8, 8)
    noise = architectures.rounding(model, shape)
    assert 1e-8 < noise < 1e-3 and architectures.rounding(Odd(8).double(), shape) < 1e-12
    assert architectures.right({"errors": [0, 0, noise, 0], "rounding": noise})
    assert not architectures.right({"errors": [0, 0, 20 * noise, 0], "rounding": noise})
    assert not architectures.right({"errors": [noise, 0, 0, 0], "rounding": noise})
    assert not architectures.right({"errors": [0, 0, noise, 0]})


class Odd(nn.Module):
    """No product of two features is taken."""

    def __init__(self, side: int | None) -> None:
        super().__init__()
        self.side, self.conv, self.fc = side or 224, nn.Conv2d(3, 2, 8, 8), nn.Linear(2 * (side or 224) ** 2 // 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.conv(x) * self.conv(x).exp()).flatten(1))


def test_the_command_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    def conv(side: int | None) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 8, 8),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(8),
            nn.Flatten(),
            nn.Linear(256, 5),
        )

    builders = {"a": conv, "b": Odd, "c": lambda side: nn.Conv2d(3, 4, 3)}
    monkeypatch.setattr(architectures, "of_torchvision", lambda: builders)
    monkeypatch.setattr(architectures, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(architectures, "ROWS", tmp_path / "rows.jsonl")
    for names in (["b"], ["a"], []):
        monkeypatch.setattr("sys.argv", ["architectures.py", "--library", "torchvision", *names])
        architectures.main()
    found = rows()
    assert [(row["name"], row["status"]) for row in found] == [("a", "taken"), ("b", "refused"), ("c", "no classifier")]
    assert found[0]["side"] == 64 and max(found[0]["errors"]) < 1e-12 and found[0]["parameters"] == 4 * 193 + 8 + 1285
    assert "which is the gate is not clear" in found[1]["reason"]
    assert architectures.PAGE.read_text(encoding="utf-8").count("| b |") == 2
    assert capsys.readouterr().out.count("\n") == 3
    monkeypatch.setattr(architectures, "measure", lambda build, passes, minutes: pytest.fail("measured twice"))
    architectures.main()


def test_what_takes_too_long_is_a_row_too():
    class Slow(Odd):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(5)
            return super().forward(x)

    row = architectures.measure(Slow, passes=False, minutes=0.005)
    assert row == {"status": "failed", "reason": "took longer than 0.005 minutes"}
    assert architectures.measure(Odd, passes=False, minutes=1)["status"] == "refused"


def test_initializers_that_draw_until_all_fits_come_to_an_end():
    weights = torch.full((100,), 9.0)
    with architectures.limited(0.05), architectures.Uninitialized():
        for bounds in ((-2, 2), (-2, -1)):
            nn.init.trunc_normal_(weights, std=0.02 if bounds[1] > 0 else 1, a=bounds[0], b=bounds[1])


def test_rows_of_several_versions_are_said_to_be_such():
    row = {"library": "timm", "status": "taken", "errors": [0.0], "date": "2026-01-01", "version": "1.0"}
    old, new = row | {"name": "a", "torch": "2.11"}, row | {"name": "b", "torch": "2.15"}
    assert "with torch 2.11 (1 of 3) and 2.15 (2 of 3), timm 1.0." in architectures.page([new, old, new])
    assert "with torch 2.15, timm 1.0." in architectures.page([new])
