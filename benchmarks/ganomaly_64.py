"""GANomaly and f-AnoGAN at 64 px on photographs, beside anomalib's GANomaly on the same files.

    python benchmarks/ganomaly_64.py --data FOLDER [--peer-python PYTHON_WITH_ANOMALIB]
        [--sides "ganomaly paper" "ganomaly code" fanogan anomalib] [--epochs 100] [--seeds 0 ...]
        [--threads N] [--output FILE]

FOLDER has the layout of MVTec AD; both sides read a copy of it at 64 x 64 px. GANomaly has
as many epochs on every side, batches of 32 and the options of its defaults else; f-AnoGAN
has 300 of both its stages, so that its generator moves at all, and an eighth of the width.
anomalib runs as documented: Folder, Engine.fit, Engine.test, ImageNet statistics, its own AUROC; it
is not let validate, which would be on the test set. Training seconds are those of the fit; ours
hold the scores of the held-out images as well.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from machine import answer, child, describe, peak_mib, read_task, versions, write_json

SIDE, BATCH = 64, 32
PARTS = ("train", "test", "ground_truth")
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "ganomaly paper": ("GANomaly", {}),
    "ganomaly code": ("GANomaly", {"variant": "code"}),
    "fanogan": ("FAnoGAN", {"width": 8, "epochs": 300, "encoder_epochs": 300,
                            "encoder_learning_rate": 5e-4}),
}  # fmt: skip


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        answer(task, (peer if task["side"] == "anomalib" else ours)(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer-python")
    parser.add_argument("--sides", nargs="+", choices=(*OURS, "anomalib"),
                        default=[*OURS, "anomalib"])  # fmt: skip
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if "anomalib" in options.sides and not options.peer_python:
        parser.error("give --peer-python PYTHON, or leave anomalib out of --sides")
    report: dict[str, Any] = {
        "machine": describe(options.threads), "data": options.data.name, "epochs": options.epochs,
        "sides": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = small(options.data, Path(folder, options.data.name))
        for side in options.sides:
            for seed in options.seeds:
                task = {"part": side, "side": side, "seed": seed, "epochs": options.epochs,
                        "data": str(data)}  # fmt: skip
                python = options.peer_python if side == "anomalib" else sys.executable
                found = child(python, __file__, task, options.threads)
                report["sides"].setdefault(side, []).append(found)
                print(f"{side:<16} seed {seed}  AUROC {found['image_auroc']:.3f}  "
                      f"{found['fit_seconds']:.0f} s  {found['ms_per_image']:.1f} ms an image",
                      flush=True)  # fmt: skip
                if options.output:
                    write_json(options.output, report)


def small(source: Path, target: Path) -> Path:
    """A copy of the set at 64 x 64 px, masks by the nearest pixel."""
    from PIL import Image

    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if path.suffix.lower() not in {".png", ".jpg", ".bmp"} or place.parts[0] not in PARTS:
            continue
        is_mask = place.parts[0] == "ground_truth"
        how = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
        out = target / place.with_suffix(".png")
        out.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("L" if is_mask else "RGB").resize((SIDE, SIDE), how).save(out)
    return target


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """Fit and judge one of our methods."""
    import torch

    import amiss
    from amiss.data.index import index

    torch.set_num_threads(task["threads"])
    kind, options = OURS[task["side"]]
    options = {"epochs": task["epochs"]} | options
    dataset = index(task["data"])
    detector = getattr(amiss, kind)(image_size=(SIDE, SIDE), batch_size=BATCH, **options)
    began = time.perf_counter()
    detector.fit(dataset, max_false_alarm=0.05, run=amiss.Run(seed=task["seed"], say=print))
    fitted = time.perf_counter()
    report = amiss.evaluate(detector, dataset)
    return {
        **report.metrics,
        "interval": report.intervals["image_auroc"],
        "false_alarm_rate": report.operating_point["false_alarm_rate"],
        "fit_seconds": fitted - began,
        "ms_per_image": 1000 * report.seconds["per_image"],
        "peak_mib": peak_mib(),
        "options": options,
        "judged": len(report.judged),
        "versions": versions("amiss", "torch", "numpy"),
    }


def peer(task: dict[str, Any]) -> dict[str, Any]:
    """The same of anomalib's GANomaly, in its environment."""
    warnings.simplefilter("ignore")
    import torch
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.metrics import AUROC, Evaluator
    from anomalib.models import Ganomaly
    from lightning.pytorch import seed_everything

    for name in ("anomalib", "lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(task["threads"])
    seed_everything(task["seed"])
    data = Path(task["data"])
    kinds = sorted(p.name for p in (data / "test").iterdir() if p.name != "good")
    module = Folder(
        name="data", root=data, normal_dir="train/good", normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds], num_workers=0, train_batch_size=BATCH,
        eval_batch_size=BATCH, test_split_mode="from_dir", val_split_mode="same_as_test",
        seed=task["seed"],
    )  # fmt: skip
    metric = AUROC(fields=["pred_score", "gt_label"], prefix="image_")
    model = Ganomaly(
        batch_size=BATCH, pre_processor=Ganomaly.configure_pre_processor(image_size=(SIDE, SIDE)),
        evaluator=Evaluator(test_metrics=[metric]), visualizer=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            accelerator="cpu", devices=1, barebones=True, default_root_dir=folder,
            max_epochs=task["epochs"], limit_val_batches=0,
        )  # fmt: skip
        began = time.perf_counter()
        engine.fit(model=model, datamodule=module)
        fitted = time.perf_counter()
        found = engine.test(model=model, datamodule=module, verbose=False)[0]
        judged = time.perf_counter()
    return {
        "image_auroc": float(found["image_AUROC"]),
        "fit_seconds": fitted - began,
        "ms_per_image": 1000 * (judged - fitted) / len(module.test_data),
        "peak_mib": peak_mib(),
        "judged": len(module.test_data),
        "versions": versions("anomalib", "torch", "numpy"),
    }


if __name__ == "__main__":
    main()
