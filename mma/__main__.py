"""Looks at adapter folders, and turns them into others.

    python -m mma inspect runs/mini-world
    python -m mma verify runs/mini-world --base assets/mini
    python -m mma diff runs/a runs/b

Each prints what it found or wrote; a wrong input gives one line and exit code 2. Wherever a folder is asked
for, a run folder (the last stage counts) or a repository of the Hub does as well. verify, merge, export, and
what is given --base, read the base: they need the checkout. All others need nothing but the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mma import routing_report
from mma.average import average
from mma.cli import difference, inspection, verification
from mma.cli.base_options import add_base_options, base_settings, named, with_options
from mma.cli.stored import Stored, read_stored
from mma.cli.terminal import Parser, hint, note, print_error, print_json, print_text
from mma.config import MMAConfig
from mma.errors import AdapterError
from mma.hub import find
from mma.lavin import from_lavin, load_lavin, read_lavin, to_lavin
from mma.run_folder import adapter_of

if TYPE_CHECKING:
    from models.build import System

# Settings that a LaVIN checkpoint may not hold: field, and the option that gives it with its type or choices.
LAVIN: dict[str, tuple[str, type | tuple[str, ...]]] = {
    "r": ("--r", int),
    "scale": ("--scale", float),
    "temperature": ("--temperature", float),
    "tower": ("--tower-rule", ("token", "legacy_no_residual")),
    "placement": ("--placement", ("attn", "both")),
    "tower_placement": ("--tower-placement", ("attn", "both")),
}
NEEDED = ("r", "scale", "temperature", "tower")  # LaVIN's own default for the others is `attn`
FOLDERS_BASE = "the one the folder names, but for what is given here"
PROMPT = "What has to stand before a prompt is in its README.md."

Run = Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        parser.error(f"there is no command {arguments[0]!r}{hint(arguments[0], COMMANDS)}")
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except AdapterError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run_inspect(options: argparse.Namespace) -> None:
    """`inspect`: one screen, from the folder alone."""
    told = inspection.inspect(_read(options.folder))
    if options.json:
        print_json(asdict(told))
    else:
        print(inspection.text(told))


def run_routes(options: argparse.Namespace) -> None:
    """`routes`: the report of the stored table, or of one that is evaluated on a base."""
    stored = _read(options.folder)
    if named(options):
        table: routing_report.Table | None = _system(options, stored, load=True).model.adapters.routes()
    else:
        table = stored.routing_table()
    if table is None and isinstance(stored.config, MMAConfig):
        raise AdapterError(
            f"adapter: {stored.path} stores no routing table (older folders and averages have none); pass "
            f"--base {stored.base.get('decoder') or 'DIR'} to evaluate it"
        )
    report = routing_report.report_of(table or {})
    if options.png is not None:
        routing_report.draw(report, options.png)
    print(routing_report.text(report))
    if options.png is not None:
        print(f"wrote {options.png}")


def run_verify(options: argparse.Namespace) -> int:
    """`verify`: a line for every check of loading, then what it costs in memory."""
    stored = _read(options.folder)
    adapters = _system(options, stored, load=False).model.adapters
    with note("checking"):
        found = verification.checks(stored, adapters)
        good = all(check.good for check in found)
        costs = verification.memory(adapters) if good else {}
    print(verification.text(found, costs))
    return 0 if good else 2


def run_merge(options: argparse.Namespace) -> None:
    """`merge`: the decoder with an adapter in its weights, as a Hugging Face folder."""
    stored = _read(options.folder)
    modality = _modality(options, stored)
    _check_free(options.out)
    system = _system(options, stored, load=True)
    with _checkout():
        from models.export import export_merged  # noqa: PLC0415, needs the libraries of models
    with note(f"merging, and writing {options.out}"):
        report = export_merged(system, options.out, modality)
    print(f"wrote {options.out}")
    print_text(
        report,
        "",
        "Load it with",
        "",
        "    from transformers import AutoModelForCausalLM",
        f'    model = AutoModelForCausalLM.from_pretrained("{options.out}")',
        "",
        f"It is a base for the commands here as well. {PROMPT}",
    )


def run_export(options: argparse.Namespace) -> None:
    """`export`: a LoRA folder for one modality."""
    stored = _read(options.folder)
    modality = _modality(options, stored)
    _check_free(options.out)
    system = _system(options, stored, load=True)
    with note(f"writing {options.out}"):
        system.model.adapters.export_peft_lora(options.out, modality)
    print(f"wrote {options.out}")
    print_text(
        f"It is a LoRA for the modality {modality}. Load it with",
        "",
        "    from peft import PeftModel",
        f'    model = PeftModel.from_pretrained(base_model, "{options.out}")',
        "",
        f"where base_model is what transformers loads from {system.settings.decoder}. {PROMPT}",
    )


def run_convert(options: argparse.Namespace) -> None:
    """`convert`: LaVIN's checkpoint to a folder, or a folder to LaVIN's checkpoint."""
    source, target = Path(options.a), Path(options.b)
    given = {name: x for name in LAVIN if (x := getattr(options, f"lavin_{name}")) is not None}
    if source.suffix != ".pth" and not source.is_file():
        if target.suffix != ".pth":
            raise AdapterError(
                f"adapter: {target} does not end in .pth, as LaVIN's checkpoints do; name it so"
            )
        if given or named(options):
            raise AdapterError("adapter: settings and --base are for a checkpoint; a folder has its own")
        to_lavin(_folder(options.a), target)
        print(f"wrote {target}\nLaVIN's code reads it; training cannot go on from it.")
        return
    _check_free(target)
    config = _lavin_settings(source, given)
    identity = None
    if named(options):
        adapters = _system(options, None, load=False).model.adapters
        load_lavin(adapters, source, config)  # refuses another base before anything is written
        identity = adapters.identity
    from_lavin(source, target, config, identity)
    bound = "It is bound to no base, and does not load: convert with --base DIR to record the base's digests."
    if identity is not None:
        bound = f"It is bound to the base {identity['base']['decoder']} with {identity['base']['tower']}."
    print(f"wrote {target}")
    print_text(bound)


def run_diff(options: argparse.Namespace) -> int:
    """`diff`: 0 when nothing differs, 1 when something does."""
    a, b = _read(options.a), _read(options.b)
    with note("comparing tensors"):
        found = difference.compare(a, b)
    if options.json:
        print_json({"identical": found.identical, **asdict(found)})
    else:
        print(difference.text(found, str(a.path), str(b.path)))
    return 0 if found.identical else 1


def run_average(options: argparse.Namespace) -> None:
    """`average`: the weighted mean, and whether it is one of what the adapters do."""
    folders = [_folder(name) for name in options.folders]
    _check_free(options.out)
    with note("averaging"):
        obstacle = average(folders, options.out, options.weights, weighted_sum=options.sum)
    kind = "sum" if options.sum else "mean"
    print(f"wrote {options.out}")
    print_text(obstacle or f"exact: it adds to every site the weighted {kind} of what the adapters add there")


def _folder(name: str) -> Path:
    """The adapter folder of a path, of a run, or of a repository."""
    return adapter_of(find(name))


def _read(name: str) -> Stored:
    return read_stored(_folder(name))


def _modality(options: argparse.Namespace, stored: Stored) -> str:
    """The modality that was asked for; one that is the only one need not be."""
    known = stored.config.modalities
    if options.modality is None and len(known) == 1:
        return known[0]
    if options.modality is None:
        raise AdapterError(f"adapter: name one modality with --modality: {', '.join(known)}")
    if options.modality not in known:
        near = hint(options.modality, dict.fromkeys(known))
        raise AdapterError(
            f"adapter: {stored.path} has no modality {options.modality!r}{near}; it has {', '.join(known)}"
        )
    modality: str = options.modality
    return modality


def _lavin_settings(source: Path, given: Mapping[str, Any]) -> MMAConfig:
    """The settings of a checkpoint, or those of the command line where it holds none."""
    read = read_lavin(source)
    if read.config is None:
        if lacking := [LAVIN[name][0] for name in NEEDED if name not in given]:
            raise AdapterError(
                f"adapter: {source} does not say its settings ({read.missing}); pass {', '.join(lacking)}"
            )
        return MMAConfig(projector_hidden=len(read.tensors["projector.down.weight"]), **given)
    for name, value in given.items():
        held = getattr(read.config, name)
        if held != value:
            raise AdapterError(
                f"adapter: {source} says itself that {name} is {held}; leave {LAVIN[name][0]} out"
            )
    return read.config


def _check_free(path: Path) -> None:
    """Refuses a name that is taken, or where nothing can be written, before anything that takes time."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise AdapterError(f"adapter: {path} exists; choose another name, or remove it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise AdapterError(f"adapter: {path} cannot be written, {parent} is no folder that allows it")


@contextmanager
def _checkout() -> Iterator[None]:
    """What reads a base comes with the checkout; in words where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise AdapterError(
            f"adapter: there is no {error.name} here, and this command reads a base with it; run it in a "
            "checkout, with its requirements.txt installed"
        ) from error


def _system(options: argparse.Namespace, stored: Stored | None, *, load: bool) -> System:
    """The base that the command line names, or else the folder; with the folder's adapter on it if asked."""
    recorded, path = ({}, Path()) if stored is None else (stored.base, stored.path)
    settings = base_settings(options, recorded, path)
    with note(f"reading the base {settings['decoder']}"), _checkout():
        from models import build  # noqa: PLC0415, takes seconds to import
        from models.errors import ModelError  # noqa: PLC0415

        try:
            base = build.BaseSettings(**settings)
            return build.load(path, base) if load else build.build_base(base)
        except ModelError as error:
            raise AdapterError(with_options(str(error))) from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m mma",
        description="Looks at adapter folders, and turns them into others. DIR is an adapter folder, a run "
        "folder with adapter/ in it, or a repository of the Hub (owner/name).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, add, meaning) in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")
        command.set_defaults(run=run)
        add(command)
    return parser


def _looking(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _routing(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a heat map as well")
    add_base_options(parser, "evaluates the table anew; without it the one in the folder is shown")


def _verifying(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    add_base_options(parser, FOLDERS_BASE)


def _exporting(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--modality", metavar="NAME", help="what samples carry, e.g. text or image")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add_base_options(parser, FOLDERS_BASE)


def _converting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="checkpoint-NN.pth, or an adapter folder")
    parser.add_argument("b", metavar="B", help="what to write: an adapter folder, or a .pth file")
    group = parser.add_argument_group("settings", "for a checkpoint that does not hold them")
    for name, (option, kind) in LAVIN.items():
        if isinstance(kind, tuple):
            group.add_argument(option, dest=f"lavin_{name}", choices=kind)
        else:
            group.add_argument(option, dest=f"lavin_{name}", type=kind, metavar="NUMBER")
    add_base_options(parser, "binds the folder to a base, whose digests are recorded in it")


def _comparing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="an adapter")
    parser.add_argument("b", metavar="B", help="the one to compare it with")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _averaging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", help="adapters of one base and settings")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--weights",
        type=_numbers,
        metavar="W,W,...",
        help="one for each, with the sum 1 (default: all the same)",
    )
    parser.add_argument("--sum", action="store_true", help="the weights may have any sum")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="an adapter folder, a run folder or owner/name")


def _numbers(words: str) -> list[float]:
    try:
        return [float(word) for word in words.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is not numbers with commas between") from None


COMMANDS: dict[str, tuple[Run, Callable[[argparse.ArgumentParser], None], str]] = {
    "inspect": (run_inspect, _looking, "what an adapter is, what it needs, what it scored"),
    "routes": (run_routes, _routing, "which routes the modalities take at each site"),
    "verify": (run_verify, _verifying, "whether an adapter loads on a base, and what it costs in memory"),
    "merge": (run_merge, _exporting, "a base with an adapter in its weights, for plain transformers"),
    "export": (run_export, _exporting, "an adapter as a LoRA folder for PEFT"),
    "convert": (run_convert, _converting, "a checkpoint of LaVIN's to an adapter folder, or back"),
    "diff": (run_diff, _comparing, "what differs between two adapters"),
    "average": (run_average, _averaging, "the weighted mean of adapters"),
}


if __name__ == "__main__":
    sys.exit(main())
