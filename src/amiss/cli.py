"""The command line: one function per command. Nothing heavy is imported until it is needed."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amiss.cli_export import export
from amiss.cli_fit import fit_command
from amiss.cli_sample import sample
from amiss.cli_synth import synth
from amiss.cli_teach import spread, teach
from amiss.console import (
    print_error,
    print_json,
    progress_bar,
    rates,
    require_writable,
    say,
)
from amiss.errors import AmissError, OptionError
from amiss.flags import ElpvAnomalous, Json, Layout, MaskDir, Roi, TestFraction, Threads, Window
from amiss.methods import ABOUT, METHODS
from amiss.threads import set_threads, spin_briefly

if TYPE_CHECKING:
    from amiss.runtime import Runtime

_TABLE_HELP = "Finds what is amiss in an image after seeing only normal ones."


# What typer raises on a command line that it cannot read: the base of its BadParameter, the only
# one of the family that every release of typer exports.
_CannotRead: Any = typer.BadParameter.__mro__[2]


def build_app(method: str | None) -> typer.Typer:
    """The commands. `fit METHOD` gets its flags from the method's options, so only the method that
    was named is imported."""
    app = typer.Typer(
        help=_TABLE_HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None
    )
    fit_app = typer.Typer(
        help="Learn from normal images: amiss fit METHOD DATA -o part.amiss", no_args_is_help=True
    )
    for name in METHODS:
        command = fit_command(name) if name == method else _unnamed
        fit_app.command(name, help=f"Fit {name}.")(command)
    app.add_typer(fit_app, name="fit")
    commands: dict[str, Callable[..., None]] = {
        "evaluate": evaluate, "predict": predict, "calibrate": calibrate, "check": check,
        "export": export, "sample": sample, "synth": synth, "teach": teach,
        "methods": methods, "inspect": show,
    }  # fmt: skip
    for name, function in commands.items():
        app.command(name)(function)
    return app


def _unnamed() -> None:
    """Stands for a method in the list of `amiss fit --help`."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a named error, 2 wrong usage, 3 an anomaly with
    --fail-on-anomaly, 130 interrupted."""
    spin_briefly()
    args = sys.argv[1:] if argv is None else argv
    args = spread(args) if args[:1] == ["teach"] else args
    as_json = "--json" in args
    if args == ["--version"]:
        from importlib.metadata import version

        print(f"amiss {version('amiss')}")
        return
    method = args[1] if len(args) > 1 and args[0] == "fit" and args[1] in METHODS else None
    app = typer.Typer()
    try:
        app = build_app(method)
        code = app(args, prog_name="amiss", standalone_mode=False)
    except AmissError as error:
        print_error(error, as_json=as_json, flags=_flags(app))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        say("Interrupted.")
        code = 130
    except BrokenPipeError:  # whoever reads the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except _CannotRead as error:
        code = _wrong_usage(error, as_json)
    sys.exit(code)


def _flags(app: typer.Typer) -> set[str]:
    """The names of all arguments and options of all commands."""
    commands = [*app.registered_commands]
    for group in app.registered_groups:
        commands += group.typer_instance.registered_commands if group.typer_instance else []
    callbacks = [command.callback for command in commands if command.callback is not None]
    return {name for call in callbacks for name in inspect.signature(call).parameters}


def _wrong_usage(error: Any, as_json: bool) -> int:
    """What typer says of a command line it cannot read."""
    if as_json:
        print_error(OptionError(error.format_message(), hint="See --help."), as_json=True)
    else:
        error.show()
    return 2


# --- evaluate ------------------------------------------------------------------------------


def evaluate(  # noqa: PLR0913 - one parameter per flag
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`.")],
    data: Annotated[str, typer.Argument(help="Folder, table or name with labelled test images.")],
    *,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page here.")] = None,
    roi: Roi = None,
    layout: Layout = None,
    mask_dir: MaskDir = None,
    test_fraction: TestFraction = 0.2,
    elpv_anomalous: ElpvAnomalous = 1.0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Judge labelled images that the detector has not seen, and say how good it is."""
    from amiss.data.index import index
    from amiss.evaluation import evaluate as judge
    from amiss.run import Run, mute
    from amiss.runtime import load

    set_threads(threads)
    if report is not None:
        require_writable(report)
    model = load(detector)
    dataset = index(
        data, layout=layout, mask_dir=mask_dir, test_fraction=test_fraction,
        elpv_anomalous=elpv_anomalous,
    )  # fmt: skip
    with progress_bar(json) as progress:
        run = Run(progress=progress, say=mute if json else say)
        outcome = judge(model, dataset, roi=roi, run=run)
    if report is not None:
        from amiss.report.page import write_page

        write_page(model, outcome, report)
    if json:
        print_json(outcome.as_dict() | {"report": None if report is None else str(report)})
        return
    print(outcome.describe())
    if report is not None:
        print(f"report: {report}")


# --- predict -------------------------------------------------------------------------------


def predict(  # noqa: PLR0913 - one parameter per flag
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`.")],
    images: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, or - for a list on stdin.")
    ] = None,
    *,
    watch: Annotated[Path | None, typer.Option(help="Judge images as they appear here.")] = None,
    settle: Annotated[
        float, typer.Option(help="Seconds for which a watched file must not have changed.")
    ] = 0.2,
    heatmaps: Annotated[Path | None, typer.Option(help="Folder for heat maps (PNG).")] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Write one JSON line per image; with --watch, add them.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write a table; with --watch, add its rows.")
    ] = None,
    roi: Roi = None,
    fail_on_anomaly: Annotated[
        bool, typer.Option(help="Exit with 3 if any image is anomalous.")
    ] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Judge images, or with --watch those that appear, until SIGTERM or Ctrl-C."""
    from contextlib import closing, nullcontext

    from amiss.results import Results
    from amiss.runtime import as_runtime, load
    from amiss.sources import judged_arrivals, judged_files
    from amiss.watch import FolderWatch, Stopper

    set_threads(threads)
    if (images is None) == (watch is None):
        raise OptionError("Give images to judge, or --watch FOLDER, and not both.")
    _require_settle(settle)
    # From now on, while the rest is loaded.
    inbox = None if watch is None else FolderWatch(watch, interval=settle)
    with nullcontext() if inbox is None else Stopper() as stopper:
        runtime = as_runtime(load(detector))
        if fail_on_anomaly:
            _require_threshold(runtime, detector)
        results = Results(
            runtime, heatmaps=heatmaps, jsonl=jsonl, csv=csv, quiet=json, endless=inbox is not None
        )
        if inbox is None or stopper is None:
            judged = judged_files(runtime, images or [], roi, results.skip)
        else:
            judged = judged_arrivals(runtime, inbox, roi, results.skip, stopper)
        with results, closing(judged):
            if watch is not None and not json:
                say(f"Watching {watch}; Ctrl-C or SIGTERM ends it.")
            for found, milliseconds in judged:
                results.add(found, milliseconds)
        if json:
            print_json(results.as_dict())
        else:
            say(results.summary())
    if fail_on_anomaly and results.anomalous:
        raise typer.Exit(3)
    nothing_judged = inbox is None and not results.judged
    if results.skipped and (fail_on_anomaly or nothing_judged):
        raise typer.Exit(1)  # an image that nobody judged must not pass for a good one


def _require_settle(seconds: float) -> None:
    if not 0.05 <= seconds <= 60:
        raise OptionError(f"settle={seconds:g} seconds; allowed is 0.05 to 60.")


def _require_threshold(runtime: Runtime, detector: Path) -> None:
    if runtime.calibration is None:
        raise OptionError(
            f"{detector.name} has no threshold, so nothing can be anomalous.",
            hint="Fit it on more images, or set one: amiss calibrate FILE --threshold VALUE.",
        )


# --- calibrate -----------------------------------------------------------------------------


def calibrate(  # noqa: PLR0913 - one parameter per flag
    detector: Annotated[
        Path, typer.Argument(help="A file made by `amiss fit` or `export`; it is changed.")
    ],
    *,
    max_false_alarm: Annotated[float | None, typer.Option(help="Another false-alarm rate.")] = None,
    threshold: Annotated[float | None, typer.Option(help="A threshold of your own.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="f1, recall, or cost FP:FN such as 1:10; needs --labelled.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(help="Labelled images to choose the threshold on; never judge on these."),
    ] = None,
    normals: Annotated[
        str | None,
        typer.Option(help="Unseen normal images to hold the rate on, instead of the fit's own."),
    ] = None,
    roi: Roi = None,
    layout: Layout = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here and keep the old file.")
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Change the threshold of a fitted detector; nothing is fitted again."""
    from amiss.recalibrate import recalibrate
    from amiss.runtime import load

    require_writable(output or detector)
    if output is not None and output.suffix != detector.suffix:
        raise OptionError(
            f"{detector.name} cannot become {output.name}: the kind stays.",
            hint=f"Let it end in {detector.suffix}.",
        )
    model = load(detector, threads=threads)
    changed = recalibrate(
        model, max_false_alarm=max_false_alarm, threshold=threshold, policy=policy,
        labelled=labelled, normals=normals, roi=roi, layout=layout,
    )  # fmt: skip
    model.save(output or detector)
    if json:
        print_json(changed.as_dict() | {"expected_rates": changed.expected_rates()})
        return
    for note in changed.notes:
        say(note)
    print(
        f"threshold {changed.threshold:.4g} by {changed.policy}: false alarms about "
        f"{changed.alpha:.2%}{rates(changed)}"
    )


# --- check, methods, inspect ---------------------------------------------------------------


def check(  # noqa: PLR0913 - one parameter per flag
    data: Annotated[str, typer.Argument(help="Folder, table or name.")],
    *,
    max_false_alarm: Annotated[float, typer.Option(help="The rate that will be asked for.")] = 0.01,
    detector: Annotated[
        Path | None, typer.Option(help="A fitted file: adds the normals that look least normal.")
    ] = None,
    window: Window = "percentile",
    layout: Layout = None,
    mask_dir: MaskDir = None,
    test_fraction: TestFraction = 0.2,
    elpv_anomalous: ElpvAnomalous = 1.0,
    json: Json = False,
) -> None:
    """Look for trouble in a data set before a fit. Exits with 1 where a fit is not advisable."""
    from amiss.data.doctor import check as examine
    from amiss.data.index import index

    outliers: list[tuple[Path, float, float | None]] = []
    if detector is not None:
        from amiss.runtime import stored_manifest

        training = stored_manifest(detector)["training"]
        root = Path(training["root"] or "")
        outliers = [(root / x["file"], x["score"], None) for x in training["least_normal"]]
    dataset = index(
        data, layout=layout, mask_dir=mask_dir, test_fraction=test_fraction,
        elpv_anomalous=elpv_anomalous,
    )  # fmt: skip
    with progress_bar(json) as progress:
        findings = examine(
            dataset,
            max_false_alarm=max_false_alarm,
            window=window,
            outliers=outliers,
            progress=progress,
        )
    if json:
        print_json(findings.as_dict())
    else:
        print(findings.describe())
    raise typer.Exit(findings.exit_status)


def methods(*, json: Json = False) -> None:
    """List the methods and what each can do."""
    rows = [{"id": name, **about._asdict()} for name, about in ABOUT.items()]
    if json:
        print_json({"methods": rows})
        return
    for row in rows:
        can = "maps" if row["localizes"] else "no maps"
        can += ", exports" if row["exportable"] is True else ""
        print(f"{row['id']:<20}{can:<17}{row['paper']}")


def show(
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit` or `amiss export`.")],
    *,
    json: Json = False,
) -> None:
    """Say what a file holds: method, options, data, calibration, versions."""
    from amiss.runtime import stored_manifest

    manifest = stored_manifest(detector)
    manifest["facts"].get("backbone", {}).pop("steps", None)
    if json:
        print_json(manifest)
        return
    manifest["training"]["files"] = f"{len(manifest['training'].get('files', []))} names"
    for section, value in manifest.items():
        _print_tree(section, value, 0)


def _print_tree(name: str, value: Any, depth: int) -> None:
    """A value under its name; tables and lists of tables below it, a line for each entry."""
    start = "  " * depth + name
    if isinstance(value, dict) and value:
        print(start)
        for key, entry in value.items():
            _print_tree(str(key), entry, depth + 1)
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        print(start)
        for entry in value:
            print("  " * (depth + 1) + "  ".join(f"{k} {_short(v)}" for k, v in entry.items()))
    else:
        print(f"{start:<23} {_short(value)}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value)) or "-"
    return "-" if value in (None, "", {}) else str(value)
