"""``chansurg verify``: are two models the same function, and where do they part?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from chansurg.cli.calibration_options import without_images
from chansurg.cli.model_options import MODEL_HELP, Arch, InputSize, TrustPickle, given, read_model
from chansurg.cli.numbers import counted, difference, relative_error
from chansurg.cli.reporting import Report, grid

EXAMPLES = (
    "chansurg verify resnet50.pth resnet50-copy.safetensors",
    "chansurg verify resnet50.pth resnet50-pix.safetensors --input-size 160",
    "chansurg verify resnet50.pth resnet50-pix.safetensors --data imagenet/val",
)


def verify(
    report: Report,
    a: Annotated[str, typer.Argument(metavar="A", help=MODEL_HELP, show_default=False, parser=given)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False, parser=given)],
    arch: Arch = None,
    input_size: InputSize = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Compare them on these images instead of random inputs: a folder, a zip, or NAME:FOLDER for a data set of torchvision's.",
            show_default=False,
            parser=given,
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", help="Images of DATA that are used.", show_default="128")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the inputs they are compared on.")] = 0,
    trust_pickle: TrustPickle = False,
) -> int:
    """Whether two models compute the same, and where they part.

    They are run on random inputs, or on images. Exit code 1 where they differ.
    """
    if data is None and samples is not None:
        raise without_images("--samples", "--data DATA", "Nothing was compared.")
    first = read_model(report, a, arch, input_size, trust_pickle=trust_pickle)
    second = read_model(report, b, arch, input_size, trust_pickle=trust_pickle)

    import chansurg
    from chansurg.surgery.verification import SAMPLES

    verdict = chansurg.verify(first, second, data=data, samples=SAMPLES if samples is None else samples, seed=seed)
    document = verdict.as_json()
    report.result(
        document,
        line=_line(document),
        show=lambda: _show(report, a, b, document, "random input" if data is None else "image"),
    )
    return 0 if verdict.equal else 1


def _line(document: Mapping[str, Any]) -> str:
    if document["reason"]:
        return f"different  {document['reason']}"
    return f"{'equal' if document['equal'] else 'different'}  max abs error {difference(document['max_abs_error'])}"


def _show(report: Report, a: str, b: str, document: Mapping[str, Any], ran_on: str) -> None:
    out = report.out
    equal = document["equal"]
    out.print("the same function" if equal else "not the same function", style="bold green" if equal else "bold red")
    report.say(f"{a}  and  {b}, on {counted(document['inputs'], ran_on)}")
    if document["reason"]:
        report.say(f"They cannot be compared: {document['reason']}.")
        return
    table = grid("", ">")
    table.add_row("largest absolute error", difference(document["max_abs_error"]))
    table.add_row("largest relative error", difference(document["max_rel_error"]))
    if document["agreement"] is not None:
        table.add_row("inputs with the same highest output", f"{100 * document['agreement']:.1f} %")
    out.print(table)
    if equal or not document["blocks"]:
        return
    if document["first_difference"] is not None:
        out.print(f"\nThey part at {document['first_difference']}.")
    blocks = grid("block", ">relative error")
    errors = {block["path"]: block["relative_error"] for block in document["blocks"]}
    for path in errors if report.verbose else _whole_blocks(list(errors)):
        blocks.add_row(path, relative_error(errors[path]))
    out.print(blocks)


def _whole_blocks(paths: list[str]) -> list[str]:
    """The outermost modules that hold layers directly, and the layers at the top: enough to see where an error grows."""
    above = {path: path.rpartition(".")[0] for path in paths}
    holders = set(above.values()) - {""}
    blocks = {above[path] for path in paths if path not in holders} - {""}
    return [path for path in paths if (path in blocks and above[path] not in blocks) or (path not in holders and not above[path])]
