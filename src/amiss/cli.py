"""The command line: one function per command. Nothing heavy is imported until it is needed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from amiss.console import (
    parse_memory,
    print_error,
    print_json,
    progress_bar,
    require_writable,
    say,
)
from amiss.errors import AmissError, OptionError
from amiss.flags import flag, option_value
from amiss.methods import METHODS, method_class
from amiss.threads import set_threads, spin_briefly

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, no more.")]
Threads = Annotated[int | None, typer.Option(help="Threads to compute on; all cores by default.")]
Roi = Annotated[
    Path | None, typer.Option(help="One mask for all images: white is looked at, black is not.")
]
Window = Annotated[
    str, typer.Option(help="Intensity window of 16-bit images: percentile, full, or LOW:HIGH.")
]
MaxMemory = Annotated[
    str | None, typer.Option(help="Memory that may be used, such as 2GiB; predicted and kept.")
]
Layout = Annotated[
    str | None, typer.Option(help="Layout of the data, where recognition on sight is wrong.")
]

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
    as_json = "--json" in args
    method = args[1] if len(args) > 1 and args[0] == "fit" and args[1] in METHODS else None
    try:
        code = build_app(method)(args, prog_name="amiss", standalone_mode=False)
    except AmissError as error:
        print_error(error, as_json=as_json)
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        say("Interrupted.")
        code = 130
    except _CannotRead as error:
        code = _wrong_usage(error, as_json)
    sys.exit(code)


def _wrong_usage(error: Any, as_json: bool) -> int:
    """What typer says of a command line it cannot read."""
    if as_json:
        print_error(OptionError(error.format_message(), hint="See --help."), as_json=True)
    else:
        error.show()
    return 2


# --- fit -----------------------------------------------------------------------------------


def fit_command(method: str) -> Callable[..., None]:
    """The function behind `amiss fit METHOD`: its own arguments and the method's options."""
    import dataclasses
    import typing

    kind = method_class(method)
    hints = typing.get_type_hints(kind.config_type)
    options = [flag(field, hints[field.name]) for field in dataclasses.fields(kind.config_type)]

    # typer reads the signature below; Python hands over what typer parsed, by name.
    def command(**values: Any) -> None:
        own = {o.name: option_value(o.name, values.pop(o.name)) for o in options}
        run_fit(kind(**own), **values)

    shared = list(inspect.signature(run_fit, eval_str=True).parameters.values())[1:]
    command.__signature__ = inspect.Signature([*shared, *options])  # type: ignore[attr-defined]
    return command


def run_fit(  # noqa: PLR0913 - one parameter per flag
    detector: Any,
    data: Annotated[str, typer.Argument(help="Folder, table (.csv, .jsonl) or name (elpv:mono).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    *,
    max_false_alarm: Annotated[
        float, typer.Option(help="Share of normal images that may be called anomalous.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    max_memory: MaxMemory = None,
    roi: Roi = None,
    window: Window = "percentile",
    layout: Layout = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Learn, calibrate, save."""
    from amiss.data.index import index
    from amiss.fit import fit
    from amiss.run import Run, mute

    set_threads(threads)
    if output.suffix != ".amiss":
        raise OptionError(f"The output {output} does not end in .amiss.", hint="Name it so.")
    require_writable(output)
    partial = output.with_name(output.name + ".partial")
    with progress_bar(json) as progress:
        run = Run(
            seed=seed, max_memory_mib=parse_memory(max_memory), progress=progress,
            say=mute if json else say, partial=partial,
        )  # fmt: skip
        try:
            fit(
                detector, index(data, layout=layout), max_false_alarm=max_false_alarm,
                roi=roi, window=window, run=run,
            )  # fmt: skip
        except KeyboardInterrupt:
            if partial.exists():
                say(f"The work so far is in {partial}; the same command goes on from there.")
            raise
    detector.save(output)
    partial.unlink(missing_ok=True)
    _say_fit(detector, output, as_json=json)


def _say_fit(detector: Any, output: Path, *, as_json: bool) -> None:
    from amiss.memory.plan import peak_mib

    training, calibration = detector.training_facts, detector.calibration
    if as_json:
        print_json(
            {
                "output": str(output),
                "method": detector.id,
                "n_normal": training["n_normal"],
                "summary": detector.summary(),
                "calibration": None if calibration is None else calibration.as_dict(),
                "least_normal": training["least_normal"],
                "seconds": training["fit_seconds"],
                "peak_memory_mib": round(peak_mib(), 1),
            }
        )
        return
    print(detector.summary())
    if calibration is not None:
        low, high = calibration.expected_rates()
        print(
            f"threshold {calibration.threshold:.4g} for at most {calibration.alpha:.3g} false "
            f"alarms (95 % sure: {low:.2%} to {high:.2%}), from {calibration.how}"
        )
    print(f"{output}: {training['n_normal']} normal images in {training['fit_seconds']:.1f} s")


# --- evaluate ------------------------------------------------------------------------------


def evaluate(
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`.")],
    data: Annotated[str, typer.Argument(help="Folder, table or name with labelled test images.")],
    *,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page here.")] = None,
    roi: Roi = None,
    layout: Layout = None,
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
    with progress_bar(json) as progress:
        run = Run(progress=progress, say=mute if json else say)
        outcome = judge(model, index(data, layout=layout), roi=roi, run=run)
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
    heatmaps: Annotated[Path | None, typer.Option(help="Folder for heat maps (PNG).")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Write one JSON line per image.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a table.")] = None,
    roi: Roi = None,
    fail_on_anomaly: Annotated[
        bool, typer.Option(help="Exit with 3 if any image is anomalous.")
    ] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Judge images."""
    from amiss.results import Results
    from amiss.runtime import as_runtime, load
    from amiss.sources import judged_images

    set_threads(threads)
    if (images is None) == (watch is None):
        raise OptionError("Give images to judge, or --watch FOLDER, and not both.")
    runtime = as_runtime(load(detector))
    with Results(runtime, heatmaps=heatmaps, jsonl=jsonl, csv=csv, quiet=json) as results:
        for found in judged_images(runtime, images or [], watch, roi, results.skip):
            results.add(found)
    if json:
        print_json(results.as_dict())
    else:
        say(results.summary())
    if fail_on_anomaly and results.anomalous:
        raise typer.Exit(3)


# --- calibrate -----------------------------------------------------------------------------


def calibrate(
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`; it is changed.")],
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here and keep the old file.")
    ] = None,
    json: Json = False,
) -> None:
    """Change the threshold of a fitted detector; nothing is fitted again."""
    from amiss.recalibrate import recalibrate
    from amiss.runtime import load

    require_writable(output or detector)
    model = load(detector)
    changed = recalibrate(
        model, max_false_alarm=max_false_alarm, threshold=threshold, policy=policy,
        labelled=labelled,
    )  # fmt: skip
    model.save(output or detector)
    low, high = changed.expected_rates()
    if json:
        print_json(changed.as_dict() | {"expected_rates": [low, high]})
        return
    for note in changed.notes:
        say(note)
    print(
        f"threshold {changed.threshold:.4g} by {changed.policy}: false alarms {changed.alpha:.3g} "
        f"(95 % sure: {low:.2%} to {high:.2%})"
    )


# --- check, methods, inspect ---------------------------------------------------------------


def check(
    data: Annotated[str, typer.Argument(help="Folder, table or name.")],
    *,
    max_false_alarm: Annotated[float, typer.Option(help="The rate that will be asked for.")] = 0.01,
    detector: Annotated[
        Path | None, typer.Option(help="A fitted file: adds the normals that look least normal.")
    ] = None,
    window: Window = "percentile",
    layout: Layout = None,
    json: Json = False,
) -> None:
    """Look for trouble in a data set before a fit. Exits with 1 where a fit is not advisable."""
    from amiss.data.doctor import check as examine
    from amiss.data.index import index

    outliers: list[tuple[Path, float, float | None]] = []
    if detector is not None:
        from amiss.artifact import read_manifest

        training = read_manifest(detector)["training"]
        root = Path(training["root"] or "")
        outliers = [(root / x["file"], x["score"], None) for x in training["least_normal"]]
    with progress_bar(json) as progress:
        findings = examine(
            index(data, layout=layout), max_false_alarm=max_false_alarm, window=window,
            outliers=outliers, progress=progress,
        )  # fmt: skip
    if json:
        print_json(findings.as_dict())
    else:
        print(findings.describe())
    raise typer.Exit(findings.exit_status)


def methods(*, json: Json = False) -> None:
    """List the methods and what each can do."""
    rows = []
    for name in METHODS:
        kind = method_class(name)
        rows.append(
            {
                "id": kind.id,
                "paper": kind.paper,
                "localizes": kind.localizes,
                "exportable": kind.exportable,
                "learns_from_anomalies": kind.learns_from_anomalies,
            }
        )
    if json:
        print_json({"methods": rows})
        return
    for row in rows:
        can = "maps" if row["localizes"] else "no maps"
        print(f"{row['id']:<20}{can:<10}{row['paper']}")


def show(
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`.")],
    *,
    json: Json = False,
) -> None:
    """Say what a file holds: method, options, data, calibration, versions."""
    from amiss.artifact import read_manifest

    manifest = read_manifest(detector)
    manifest["facts"].get("backbone", {}).pop("steps", None)
    if json:
        print_json(manifest)
        return
    manifest["training"]["files"] = f"{len(manifest['training']['files'])} names"
    for section, value in manifest.items():
        if isinstance(value, dict):
            print(section)
            for key, entry in value.items():
                print(f"  {key:<20}{entry}")
        else:
            print(f"{section:<22}{value}")
