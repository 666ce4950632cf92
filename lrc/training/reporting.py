"""Progress bar and TensorBoard log of a training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from lrc.training.checkpoints import Record
from lrc.utils.errors import InputError

Bar = Callable[..., None]
"""`bar(advance=n)`: so many images more are done; `bar(description="epoch 2/3")`."""


class _Speed(ProgressColumn):
    """Images a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


@contextmanager
def progress_bar(shown: bool, *, images: int, done: int = 0) -> Iterator[Bar]:
    """A bar over the images of all epochs, with images a second and the time left; gone when the training ends.

    Never in a file or a pipe, even if it is to be `shown`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), _Speed(), TimeRemainingColumn())
    progress = Progress(*columns, transient=True)
    progress.disable = not shown or not (progress.console.is_terminal or progress.console.is_jupyter)
    with progress:
        task = progress.add_task("training", total=images, completed=done)
        yield partial(progress.update, task)


@contextmanager
def tensorboard_log(folder: Path | None, *, epochs: int) -> Iterator[Callable[[Record], None]]:
    """A function that writes the numbers of an epoch into the TensorBoard log `folder`; without one, into nothing.

    So many epochs are done already; what an earlier log says of later ones is taken back.

    Raises InputError: TensorBoard is not installed.
    """
    if folder is None:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import
    except ImportError as error:
        raise InputError("the log for TensorBoard needs the package tensorboard: pip install tensorboard") from error
    writer = SummaryWriter(folder, purge_step=epochs + 1)

    def write(record: Record) -> None:
        for name, value in record.items():
            if name != "epoch" and isinstance(value, int | float):
                writer.add_scalar(name, value, record["epoch"])

    try:
        yield write
    finally:
        writer.close()
