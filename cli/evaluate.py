"""``chansurg evaluate``: top-1, top-5, loss and throughput on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chansurg.cli.model_options import Arch, InputSize, Model, Pretrained, TrustPickle, given_path, read_model
from chansurg.cli.reporting import Report, grid

if TYPE_CHECKING:
    from chansurg.surgery.training.evaluation import Evaluation

EXAMPLES = (
    "chansurg evaluate resnet50.pth --data imagenet/",
    "chansurg evaluate resnet50-pix.safetensors --data photos.zip --json",
    "chansurg evaluate resnet50.pth --data imagenet/ --split test",
)


def evaluate(
    report: Report,
    model: Model,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="Class folders, or train/ and val/ above them; or a zip of that.", parser=given_path),
    ],
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which split folder.")] = "val",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images a batch.")] = 100,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            metavar="N",
            help="Processes that decode images.",
            show_default="one a processor, at most 8; none for few images",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, …", show_default="cuda where there is one, else cpu"),
    ] = None,
    arch: Arch = None,
    input_size: InputSize = None,
    pretrained: Pretrained = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Top-1, top-5 and loss on labelled images.

    Exactly what a plain PyTorch loop gives; zips are read without unpacking.
    """
    network = read_model(report, model, arch, input_size, pretrained=pretrained, trust_pickle=trust_pickle)

    import torch

    import chansurg

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with report.progress("evaluating", "images") as progress:
        result = chansurg.evaluate(network, data, split=split, batch_size=batch_size, workers=workers, device=place, progress=progress)
    report.result(
        result.as_json(),
        line=f"top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  loss {result.loss:.4f}  images {result.images}",
        show=lambda: _show(report, model, data, result),
    )


def _show(report: Report, model: str, data: Path, result: Evaluation) -> None:
    table = grid("", ">")
    table.add_row("top-1", f"{result.top1:.2f} %")
    table.add_row("top-5", f"{result.top5:.2f} %")
    table.add_row("loss", f"{result.loss:.4f}")
    table.add_row("images", f"{result.images:,}")
    table.add_row("images a second", f"{result.images_per_second:,.0f}")
    report.out.print(f"{model} on {data}", style="bold", soft_wrap=True)
    report.out.print(table)
