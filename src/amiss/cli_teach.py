"""`amiss teach`: learn from missed defects and from false alarms, and take it back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from amiss.console import (
    kept_work,
    parse_memory,
    print_json,
    progress_bar,
    rates,
    require_writable,
    say,
)
from amiss.errors import OptionError
from amiss.flags import Device, Json, MaxMemory, Roi, Threads

_SEVERAL = ("--anomalous", "--normal")


def spread(args: Sequence[str]) -> list[str]:
    """`--anomalous a.png b.png`, as a shell writes it for `*.png`, with the name before each."""
    found: list[str] = []
    name = ""
    for arg in args:
        if arg.startswith("-"):
            own = arg.partition("=")[0]
            name = own if own in _SEVERAL else ""
        elif name and found[-1] != name:
            found.append(name)
        found.append(arg)
    return found


def teach(  # noqa: PLR0913 - one parameter per flag
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`; it is changed.")],
    *,
    anomalous: Annotated[
        list[str] | None,
        typer.Option(help="Missed defects: images, or a folder or set of them."),
    ] = None,
    mask_dir: Annotated[
        Path | None, typer.Option(help="Folder of their masks, where they do not lie beside them.")
    ] = None,
    normal: Annotated[
        list[str] | None, typer.Option(help="False alarms: images, or a folder of them.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="The images it was fitted on, where they do not lie where they did."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Labelled images to judge on, before and after; if left, those of data."),
    ] = None,
    roi: Roi = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Put the detector back that was there before.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    max_memory: MaxMemory = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Learn from missed defects and false alarms, and say what that changes."""
    from amiss.run import Run
    from amiss.teaching import teach_file
    from amiss.teaching import undo as put_back
    from amiss.threads import set_threads

    set_threads(threads)
    if undo:
        given = {"--anomalous": anomalous, "--normal": normal, "--mask-dir": mask_dir,
                 "--data": data, "--judge": judge, "--roi": roi}  # fmt: skip
        useless = [name for name, value in given.items() if value]
        if useless:
            raise OptionError(
                f"--undo teaches nothing: {', '.join(useless)} has no effect.",
                hint="Leave it out.",
            )
        _say_undone(detector, put_back(detector), as_json=json)
        return
    require_writable(detector)
    notes: list[str] = []
    partial = detector.with_name(detector.name + ".teach.partial")
    with progress_bar(json) as progress, kept_work(partial):
        run = Run(
            seed=seed, max_memory_mib=parse_memory(max_memory), progress=progress,
            say=notes.append if json else say, partial=partial, device=device,
        )  # fmt: skip
        taught = teach_file(
            detector, anomalous=_defects(anomalous, mask_dir), normal=_one_or_all(normal),
            data=data, judge=judge, roi=roi, run=run,
        )  # fmt: skip
    _say_taught(detector, taught, notes, as_json=json)


def _one_or_all(given: list[str] | None) -> Any:
    """A set or a folder by itself, or a list of images."""
    from amiss.data.stream import is_there
    from amiss.data.tables import TABLE_SUFFIXES

    if not given or len(given) > 1:
        return given
    path = Path(given[0])
    return given if is_there(path) and path.suffix.lower() not in TABLE_SUFFIXES else given[0]


def _defects(given: list[str] | None, mask_dir: Path | None) -> Any:
    from amiss.data.defects import anomalous_records

    if given is None:
        if mask_dir is not None:
            raise OptionError(
                "--mask-dir has no effect without --anomalous.", hint="Name the defects as well."
            )
        return None
    return anomalous_records(_one_or_all(given), mask_dir)


def _say_taught(path: Path, taught: Any, notes: list[str], *, as_json: bool) -> None:
    from amiss.teaching import versions_of

    calibration = taught.detector.calibration
    if as_json:
        reports = {"before": taught.before, "after": taught.after}
        print_json(
            {
                "path": str(path),
                "method": taught.detector.id,
                "shown_kinds": list(taught.shown_kinds),
                "lesson": {name: counts._asdict() for name, counts in taught.lesson.items()},
                **{
                    name: None
                    if report is None
                    else {"metrics": report.metrics, "operating_point": report.operating_point}
                    for name, report in reports.items()
                },
                "calibration": None if calibration is None else calibration.as_dict(),
                "notes": notes,
            }
        )
        return
    print(taught.describe())
    print(taught.detector.summary())
    if calibration is not None:
        print(
            f"threshold {calibration.threshold:.4g}: on average at most {calibration.alpha:.2%} "
            f"false alarms{rates(calibration)}; by {calibration.how}"
        )
    old = versions_of(path)[-1].name
    print(f"{path}: taught; what it was is {old} beside it; amiss teach {path} --undo puts it back")


def _say_undone(path: Path, undone: Any, *, as_json: bool) -> None:
    version, kept = (file.name for file in undone)
    if as_json:
        print_json({"path": str(path), "undone": version, "kept": kept})
    else:
        print(
            f"{path}: as it was in {version}, before it was last taught; what it had become is "
            f"{kept} beside it"
        )
