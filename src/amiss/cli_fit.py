"""`amiss fit METHOD`: the command whose flags are made from the method's options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import nullcontext
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
from amiss.flags import (
    Device,
    ElpvAnomalous,
    Json,
    Layout,
    MaskDir,
    MaxMemory,
    Roi,
    TestFraction,
    Threads,
    Window,
    flag,
    option_value,
)
from amiss.methods import method_class
from amiss.run import peak_mib
from amiss.threads import set_threads


def fit_command(method: str) -> Callable[..., None]:
    """The function behind `amiss fit METHOD`: its own arguments and the method's options."""
    import dataclasses
    import typing

    kind = method_class(method)
    hints = typing.get_type_hints(kind.config_type)
    fields = dataclasses.fields(kind.config_type)
    options = [flag(field, hints[field.name]) for field in fields]

    # typer reads the signature below; Python hands over what typer parsed, by name.
    def command(**values: Any) -> None:
        own = {field.name: option_value(field, values.pop(field.name)) for field in fields}
        run_fit(kind(**own), **values)

    shared = list(inspect.signature(run_fit, eval_str=True).parameters.values())[1:]
    command.__signature__ = inspect.Signature([*shared, *options])  # type: ignore[attr-defined]
    return command


def run_fit(  # noqa: PLR0913 - one parameter per flag
    detector: Any,
    data: Annotated[str, typer.Argument(help="Folder, table (.csv, .jsonl) or name (elpv:mono).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    *,
    anomalous: Annotated[
        str | None,
        typer.Option(help="Of methods that learn from defects: a set or folder of known ones."),
    ] = None,
    anomalous_masks: Annotated[
        Path | None, typer.Option(help="Folder of their masks, where they do not lie beside them.")
    ] = None,
    max_false_alarm: Annotated[
        float, typer.Option(help="Share of normal images that may be called anomalous.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    max_memory: MaxMemory = None,
    roi: Roi = None,
    window: Window = "percentile",
    layout: Layout = None,
    mask_dir: MaskDir = None,
    test_fraction: TestFraction = 0.2,
    elpv_anomalous: ElpvAnomalous = 1.0,
    device: Device = "cpu",
    precision: Annotated[
        str, typer.Option(help="Of methods that train: 32-true, bf16-mixed or 16-mixed.")
    ] = "32-true",
    log: Annotated[
        Path | None, typer.Option(help="Of methods that train: folder of losses for TensorBoard.")
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Learn, calibrate, save."""
    from amiss.data.index import index
    from amiss.fit import fit
    from amiss.run import Run

    set_threads(threads)
    if output.suffix != ".amiss":
        raise OptionError(f"The output {output} does not end in .amiss.", hint="Name it so.")
    require_writable(output)
    partial = output.with_name(output.name + ".partial")
    notes: list[str] = []
    # Of several processes that learn together, the first speaks and writes.
    is_first = os.environ.get("RANK", "0") == "0"
    with progress_bar(json or not is_first) as progress:
        run = Run(
            seed=seed, max_memory_mib=parse_memory(max_memory), progress=progress,
            say=notes.append if json or not is_first else say, partial=partial,
            device=device, precision=precision, log=log,
        )  # fmt: skip
        dataset = index(
            data, layout=layout, mask_dir=mask_dir, test_fraction=test_fraction,
            elpv_anomalous=elpv_anomalous,
        )  # fmt: skip
        with kept_work(partial) if is_first else nullcontext():
            fit(
                detector, dataset, anomalous=_known(anomalous, anomalous_masks),
                max_false_alarm=max_false_alarm, roi=roi, window=window, run=run,
            )  # fmt: skip
            if is_first:
                detector.save(output)
    if not is_first:
        return
    _say_fit(detector, output, notes, as_json=json)


def _known(anomalous: str | None, masks: Path | None) -> Any:
    """The records of --anomalous, or None."""
    from amiss.data.defects import anomalous_records

    if anomalous is None:
        if masks is not None:
            raise OptionError(
                "--anomalous-masks has no effect without --anomalous.",
                hint="Name the folder of the defects as well.",
            )
        return None
    return anomalous_records(anomalous, masks)


def _say_fit(detector: Any, output: Path, notes: list[str], *, as_json: bool) -> None:

    training, calibration = detector.training_facts, detector.calibration
    if as_json:
        print_json(
            {
                "output": str(output),
                "method": detector.id,
                "n_normal": training["n_normal"],
                "summary": detector.summary(),
                "calibration": None if calibration is None else calibration.as_dict(),
                "expected_rates": None if calibration is None else calibration.expected_rates(),
                "least_normal": training["least_normal"],
                "seconds": training["fit_seconds"],
                "peak_memory_mib": round(peak_mib(), 1),
                "notes": notes,
            }
        )
        return
    print(detector.summary())
    if calibration is not None:
        print(
            f"threshold {calibration.threshold:.4g}: on average at most {calibration.alpha:.2%} "
            f"false alarms{rates(calibration)}; by {calibration.how}"
        )
    known = len(training.get("known_defects", ()))
    defects = f" and {known} known defects" if known else ""
    print(
        f"{output}: {training['n_normal']} normal images{defects} in "
        f"{training['fit_seconds']:.1f} s"
    )
