"""``chansurg finetune``: train a network on labelled images, converted or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from chansurg.cli.model_options import Arch, InputSize, Model, Pretrained, TrustPickle, existing_input, given, given_path, read_model, stem
from chansurg.cli.numbers import counted
from chansurg.cli.output_file import check_output, note_kept, note_written
from chansurg.cli.reporting import Report, grid
from chansurg.cli.several_processes import speaking_once
from chansurg.cli.training_options import settings_parameters
from chansurg.cli.training_progress import training_progress
from chansurg.surgery.errors import InputError
from chansurg.surgery.training.settings import settings_from

if TYPE_CHECKING:
    from torch import nn

    from chansurg.surgery.training.finetuning import Outcome
    from chansurg.surgery.training.settings import Settings

EXAMPLES = (
    "chansurg finetune resnet20-pix.safetensors --data cifar10.zip --epochs 30",
    "chansurg finetune r20-pcs.safetensors --data cifar10.zip --target-macs 0.45 --teacher resnet20.pth -o r20-ft.safetensors",
    "chansurg finetune cifar/resnet20 --data cifar10.zip --epochs 160 --lr 0.1",
    "torchrun --nproc-per-node 2 -m chansurg finetune resnet50-pix.safetensors --data imagenet/ --precision bf16",
)
PARAMETERS = settings_parameters


def finetune(
    report: Report,
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Class folders under train/ and val/, or a zip of that; or torchvision's data set on disk, as cifar10:DIR.",
            parser=given,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Where to write.", show_default="MODEL-finetuned.safetensors", parser=given_path
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="A network to distil from. Left out: the one that MODEL was converted from, where that lies beside it.",
            show_default=False,
            parser=given,
        ),
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Distil from none.")] = False,
    teacher_arch: Annotated[
        str | None,
        typer.Option("--teacher-arch", metavar="NAME", help="Its architecture, as for --arch.", show_default=False),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew; what the run has reached is thrown away.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT whatever it holds. The input is never replaced.")] = False,
    arch: Arch = None,
    input_size: InputSize = None,
    pretrained: Pretrained = False,
    trust_pickle: TrustPickle = False,
    **settings: Any,
) -> None:
    """Train or recover a classifier.

    The run is kept in OUT.run/: the same command again goes on where it stopped. An architecture's name starts from fresh weights, with
    the classes of the data.
    """
    chosen = settings_from({name: value for name, value in settings.items() if value is not None})
    _check_teacher(teacher, teacher_arch, no_teacher=no_teacher)
    target = output or Path(f"{stem(model)}-finetuned.safetensors")
    with speaking_once(report):
        unasked = teacher is None and not no_teacher
        if unasked:
            teacher, teacher_arch = _original(report, model, arch)
        inputs = [path for path in (existing_input(model), None if teacher is None else existing_input(teacher)) if path is not None]
        check_output(target, inputs=inputs, force=True)
        network = _network(report, model, data, chosen, arch, input_size, pretrained=pretrained, trust_pickle=trust_pickle)
        taught_by = None if teacher is None else _teacher(report, teacher, teacher_arch, trust_pickle=trust_pickle, unasked=unasked)
        outcome = _carried_out(report, network, data, chosen, target, taught_by, restart=restart, force=force)
        note_written(target)
        found = dict(outcome.results)
        document = {
            "output": str(target),
            "run": f"{target}.run",
            **{key: found.get(key) for key in ("epochs", "steps", "epoch", "kept")},
            **{key: found.get(f"val_{key}") for key in ("top1", "top5", "loss")},
            **{key: found.get(key) for key in ("train_loss", "train_top1")},
            **({"budget": found["budget"]} if "budget" in found else {}),
            "trained_steps": outcome.trained_steps,
        }
        report.result(document, line=str(target), show=lambda: _show(report, model, target, outcome))


def _check_teacher(teacher: str | None, arch: str | None, *, no_teacher: bool) -> None:
    if no_teacher and (teacher is not None or arch is not None):
        raise InputError(
            "A teacher is named, and none is wanted.",
            where="option --no-teacher",
            not_done="Nothing was trained.",
            to_do="Pass either --teacher MODEL or --no-teacher.",
        )
    if arch is not None and teacher is None:
        raise InputError(
            "There is no teacher whose architecture that could be.",
            where="option --teacher-arch",
            not_done="Nothing was trained.",
            to_do="Name the teacher, too: --teacher MODEL; or leave it out.",
        )


def _original(report: Report, model: str, arch: str | None) -> tuple[str | None, str | None]:
    """The network that the model was converted from, where its file is at hand, and its architecture."""
    from chansurg.surgery.files.lineage import history, original_of

    path = existing_input(model)
    found = None if path is None else original_of(path)
    if path is None or found is None:
        return None, None
    name, file = found
    if file is None:
        report.note(f"no teacher: {name}, which {path.name} was converted from, does not lie beside it; --teacher names it")
        return None, None
    report.note(f"teacher: {name}, which {path.name} was converted from; --no-teacher leaves it out")
    architecture = history(path).architecture
    return str(file), arch or (None if architecture is None or architecture.source == "factory" else str(architecture))


def _network(
    report: Report,
    model: str,
    data: str,
    settings: Settings,
    arch: str | None,
    input_size: str | None,
    *,
    pretrained: bool,
    trust_pickle: bool,
) -> nn.Module:
    """The network to train: read, or of that name with fresh weights and the classes of the data."""
    network = read_model(report, model, arch, input_size, pretrained=pretrained, trust_pickle=trust_pickle)
    if existing_input(model) is not None or pretrained:
        return network

    from chansurg.surgery.training.starting import fresh_for

    return fresh_for(network, data, seed=settings.seed)


def _teacher(report: Report, teacher: str, arch: str | None, *, trust_pickle: bool, unasked: bool) -> nn.Module:
    try:
        return read_model(report, teacher, arch, None, trust_pickle=trust_pickle)
    except InputError as error:
        raise InputError(
            error.what,
            where=f"the teacher, {error.where}",
            not_done="Nothing was trained.",
            to_do=error.to_do.replace("--arch", "--teacher-arch") + (" Or train without it: --no-teacher." if unasked else ""),
        ) from error


def _carried_out(
    report: Report,
    network: nn.Module,
    data: str,
    settings: Settings,
    target: Path,
    teacher: nn.Module | None,
    *,
    restart: bool,
    force: bool,
) -> Outcome:
    from chansurg.surgery.training.finetuning import carry_out
    from chansurg.surgery.training.run_folder import RunFolder

    try:
        with training_progress(report) as progress:
            return carry_out(network, data, settings, output=target, teacher=teacher, restart=restart, overwrite=force, progress=progress)
    except KeyboardInterrupt as stopped:
        folder = RunFolder(target)
        if folder.last.exists():
            at = str(stopped) or "the run is not finished; its state is saved"
            note_kept(f"{at} in {folder.last}, and the same command goes on from there")
        raise


def _show(report: Report, model: str, target: Path, outcome: Outcome) -> None:
    found = outcome.results
    table = grid("", ">")
    for label, key, form in (
        ("top-1", "val_top1", "{:.2f} %"),
        ("top-5", "val_top5", "{:.2f} %"),
        ("loss", "val_loss", "{:.4f}"),
        ("training loss", "train_loss", "{:.4f}"),
        ("training top-1", "train_top1", "{:.2f} %"),
    ):
        if found.get(key) is not None:
            table.add_row(label, form.format(found[key]))
    budget = found.get("budget")
    if budget is not None:
        table.add_row(f"{budget['quantity'].replace('_', ' ')} when sliced, of the original", f"{budget['reached']:.3f}")
        table.add_row("target", f"{budget['target']:.3f}")
    kept = "the best epoch" if found["kept"] == "best" else "the last epoch"
    report.out.print(f"{model}: {counted(found['epochs'], 'epoch')}, {counted(found['steps'], 'step')}", style="bold", soft_wrap=True)
    report.say(f"{kept}, {found.get('epoch')}\n", style="dim")
    report.out.print(table)
    if not outcome.trained_steps:
        report.say("The run was finished already; nothing was trained. --restart begins it anew.")
    elif outcome.began_at:
        report.say(f"It went on at step {outcome.began_at}.")
    report.say(Text.assemble("wrote " if outcome.written else "kept ", (str(target), "bold")))
