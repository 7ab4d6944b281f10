"""`teach`: missed defects and false alarms, figures before and after, versions and undo."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import amiss
from amiss import BGAD, NFAD, PaDiM, PatchCore
from amiss.cli_teach import spread
from amiss.data import read_image
from amiss.data.defects import anomalous_records
from amiss.errors import ArtifactError, DataError, OptionError
from amiss.fit import fit
from amiss.found_again import defects_of, normals_of
from amiss.run import Run
from amiss.teaching import teach, teach_file, undo, versions_of
from amiss.types import Record
from commands import amiss as command
from made_images import spoil, texture, textures, write

TINY: dict[str, Any] = {
    "backbone": "test_efficientnet", "weights": "random", "image_size": (48, 64),
    "layers": ("4", "8"),
}  # fmt: skip
QUICK: dict[str, Any] = {"blocks": 2, "epochs": 6, "normal_epochs": 2, "vectors": 128}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An MVTec layout: normal textures; two kinds of defects, one with masks; false alarms."""
    root = tmp_path / "parts"
    textures(root / "train" / "good", 8, seed=1)
    textures(root / "test" / "good", 3, seed=2)
    textures(root / "test" / "spot", 5, seed=3, defects=True, masks=root / "ground_truth")
    textures(root / "test" / "stain", 4, seed=4, defects=True)
    textures(tmp_path / "alarms", 2, seed=5)
    return root


def patchcore(folder: Path, **options: Any) -> Any:
    detector = PatchCore(**TINY, coreset_ratio=0.1)
    return fit(detector, folder, max_false_alarm=0.2, **options)


def spots(folder: Path, count: int = 2) -> list[Path]:
    return sorted((folder / "test" / "spot").glob("*.png"))[:count]


def paths(report: Any) -> set[str]:
    return {Path(row.path).parent.name + "/" + Path(row.path).name for row in report.judged}


def test_missed_defects_make_a_bgad_of_any_detector(folder: Path) -> None:
    old = patchcore(folder)
    scores = [old.predict(path).score for path in spots(folder)]
    taught = teach(old, anomalous=spots(folder), options=QUICK)
    new = taught.detector
    assert isinstance(new, BGAD) and new.image_size == (48, 64)
    assert new.config.backbone == "test_efficientnet" and new.config.weights == "random"
    assert new.facts["defects"] == 2
    assert new.training_facts["n_normal"] == 8
    assert new.calibration.max_false_alarm == 0.2
    assert [old.predict(path).score for path in spots(folder)] == scores
    (lesson,) = new.training_facts["taught"]
    assert lesson["method_before"] == "patchcore" and len(lesson["defects"]) == 2


def test_both_are_judged_on_what_neither_has_seen(folder: Path) -> None:
    taught = teach(patchcore(folder), anomalous=spots(folder), options=QUICK)
    assert taught.before is not None and taught.after is not None
    assert paths(taught.before) == paths(taught.after)
    assert len(taught.before.judged) == 3 + 3 + 4
    assert not paths(taught.before) & {f"spot/{path.name}" for path in spots(folder)}
    assert taught.shown_kinds == ("spot",)
    told = taught.describe()
    assert "spot (taught)" in told and "stain (not taught)" in told and "false alarms" in told
    assert "before" in told.splitlines()[0]


def test_what_was_taught_is_told_apart_from_what_is_judged(folder: Path, tmp_path: Path) -> None:
    alarms = sorted((folder.parent / "alarms").iterdir())
    old = patchcore(folder)
    taught = teach(old, anomalous=spots(folder), normal=alarms, options=QUICK)
    for name, images in (("defects", spots(folder)), ("false_alarms", alarms)):
        both = (old, taught.detector)
        numbers = [sum(bool(d.predict(p).is_anomalous) for p in images) for d in both]
        assert taught.lesson[name] == (*numbers, 2)
    told = taught.describe()
    assert "called anomalous" in told and "changed from patchcore to bgad" in told
    assert "20.00%" in told  # the rate that the first threshold keeps
    bare = tmp_path / "normals"
    textures(bare, 6, seed=5)
    alone = teach(patchcore(bare), anomalous=spots(folder), options=QUICK)
    assert alone.before is None and "defects" in alone.describe()
    assert "name some (judge=SET" in alone.describe()


def test_without_a_threshold_nothing_is_called_anything(folder: Path, tmp_path: Path) -> None:
    one = textures(tmp_path / "one", 1, seed=1)
    old = fit(PatchCore(**TINY, coreset_ratio=0.5), one, run=Run(say=lambda _: None))
    assert old.calibration is None
    taught = teach(old, normal=folder.parent / "alarms", judge=folder, run=Run(say=lambda _: None))
    assert taught.lesson["false_alarms"] == (None, 0, 2)
    assert "no threshold" in taught.describe()


def test_kinds_of_what_was_taught_may_be_unknown(folder: Path, tmp_path: Path) -> None:
    new = tmp_path / "line"
    textures(new, 2, seed=77, defects=True)
    taught = teach(patchcore(folder), anomalous=new, options=QUICK)
    assert taught.has_unknown_kinds and not taught.shown_kinds
    assert "spot (taught or not)" in taught.describe()
    textures(tmp_path / "stain", 2, seed=78, defects=True)  # the folder says it
    taught = teach(patchcore(folder), anomalous=tmp_path / "stain", options=QUICK)
    assert taught.shown_kinds == ("stain",) and not taught.has_unknown_kinds
    assert "spot (not taught)" in taught.describe()


def test_what_is_to_be_judged_is_looked_at_first(folder: Path, tmp_path: Path) -> None:
    flat = textures(tmp_path / "flat", 2, seed=1)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was learned before")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amiss.teaching.fit", never)
        for judge, said in ((tmp_path / "nothing", "no such"), (flat, "no labelled test image")):
            with pytest.raises(DataError, match=said):
                teach(patchcore(folder), anomalous=spots(folder), judge=judge)
        with pytest.raises(OptionError, match="fitted without a region"):
            teach(patchcore(folder), anomalous=spots(folder), roi=spots(folder)[0])
        with pytest.raises(OptionError, match="str is none"):
            teach("part.amiss", anomalous=spots(folder))  # type: ignore[arg-type]


def test_a_lesson_against_the_labels_is_said(folder: Path) -> None:
    said: list[str] = []
    good = sorted((folder / "test" / "good").iterdir())[0]
    run = Run(say=said.append)
    teach(patchcore(folder), anomalous=[good], normal=[spots(folder)[0]], options=QUICK, run=run)
    against = [line for line in said if "says the opposite" in line]
    assert len(against) == 2 and good.name in against[0] and "as normal" in against[1]


def test_the_same_lesson_twice_is_one(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(spots(folder)[0].read_bytes())
    said: list[str] = []
    first = teach(patchcore(folder), anomalous=[*spots(folder), copy], options=QUICK).detector
    assert first.facts["defects"] == 2
    with pytest.raises(OptionError, match="taught before"):
        teach(first, anomalous=[copy], run=Run(say=said.append))
    again = teach(first, anomalous=[copy], options=QUICK).detector
    assert again.facts["defects"] == 2 and "1 of the defects were given before" in said


def test_a_mask_given_later_or_anew_is_news(folder: Path, tmp_path: Path) -> None:
    def drawn(name: str, size: int) -> Record:
        mask = np.zeros(read_image(spot).shape[:2], np.uint8)
        mask[:size, :size] = 255
        Image.fromarray(mask).save(tmp_path / name)
        return Record(spot, 1, mask=(tmp_path / name,))

    spot = spots(folder)[0]
    bare = teach(patchcore(folder), anomalous=[spot], options=QUICK).detector
    assert bare.training_facts["known_masks"] == [[]]
    for lesson in (drawn("first.png", 9), drawn("second.png", 5), drawn("second.png", 7)):
        bare = teach(bare, anomalous=[lesson]).detector
        assert bare.training_facts["known_masks"] == [[str(lesson.masks[0])]]


def test_false_alarms_that_were_none_and_twice_the_same_are_told(folder: Path) -> None:
    good = folder / "test" / "good" / "000.png"
    taught = teach(patchcore(folder), normal=[good])
    was_none = "None of the false alarms was called anomalous before."
    assert (was_none in taught.describe()) == (taught.lesson["false_alarms"].before == 0)
    with pytest.raises(OptionError, match="taught before"):
        teach(taught.detector, normal=[good])


def test_a_rate_that_cannot_be_kept_any_more_is_told(folder: Path) -> None:
    """Of eight normal images a fifth is held out: one."""
    taught = teach(patchcore(folder), anomalous=spots(folder), options=QUICK)
    assert taught.detector.calibration.alpha == 1 / 2
    assert "no lower rate of false alarms than 50.00%" in taught.describe()


def test_how_many_normal_images_would_do_counts_the_added_ones_once(folder: Path) -> None:
    """A rate of 0.2 takes four judged images; one of the eight of the fit is, and no added one."""
    alarms = sorted((folder / "test" / "good").iterdir())[:2]
    taught = teach(patchcore(folder), normal=alarms)
    assert len(taught.detector.calibration.scores) == 8
    assert not any("in all would do" in note for note in taught.detector.calibration.notes)
    assert "10 normal images, of which 2 that were added do not count" in (
        taught.detector.calibration.how
    )
    held_out = teach(patchcore(folder), anomalous=spots(folder), normal=alarms, options=QUICK)
    told = " ".join(held_out.detector.calibration.notes)
    assert f"about {8 * 4 + 2} in all would do" in told


def test_false_alarms_set_no_threshold_when_the_images_are_looked_for(
    folder: Path, tmp_path: Path
) -> None:
    alarm = folder / "test" / "good" / "000.png"
    first = teach(patchcore(folder), normal=[alarm]).detector
    assert len(first.calibration.scores) == 8
    second = teach(first, normal=[folder / "test" / "good" / "001.png"], data=folder).detector
    assert len(second.calibration.scores) == 8
    assert len(second.training_facts["added_normals"]) == 2
    moved = folder.rename(tmp_path / "moved")  # with the false alarms in it
    third = teach(second, normal=[moved / "test" / "good" / "002.png"], data=moved)
    assert third.detector.training_facts["n_normal"] == 11
    assert third.after is not None  # judged on the test images of data
    (moved / "train" / "good" / "000.png").write_bytes(
        (moved / "train" / "good" / "001.png").read_bytes()
    )
    with pytest.raises(DataError, match=r"7 were found below .*000\.png was not"):
        teach(second, normal=[moved / "test" / "good" / "002.png"], data=moved)


def test_a_defect_that_moved_is_found_by_its_content(folder: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    for path in spots(folder, 3)[:2]:
        (shown / path.name).write_bytes(path.read_bytes())
    first = fit(BGAD(**TINY, **QUICK, batch_size=4), folder, anomalous=shown, max_false_alarm=0.5)
    copies = tmp_path / "copies"
    shutil.copytree(shown, copies)
    for path in list(shown.iterdir()):
        path.unlink()
    more = spots(folder, 3)[2:]
    with pytest.raises(DataError, match=r"The defect .* is not there any more.*name the set"):
        teach(first, anomalous=more)
    assert teach(first, anomalous=more, data=folder).detector.facts["defects"] == 3
    with pytest.raises(OptionError, match="taught before"):  # there as well, but nothing new
        teach(first, anomalous=copies)
    assert teach(first, anomalous=copies, options=QUICK).detector.facts["defects"] == 2


def test_a_threshold_by_policy_is_said_to_be_replaced(folder: Path) -> None:
    old = patchcore(folder)
    old.calibration = dataclasses.replace(old.calibration, policy="f1")
    said: list[str] = []
    teach(old, normal=folder.parent / "alarms", run=Run(say=said.append))
    assert any("chosen by f1" in line for line in said)


def test_an_exported_file_is_not_taught(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exported file, which does not learn"):
        teach_file(tmp_path / "part.onnx", normal=folder.parent / "alarms")


def test_another_image_under_an_old_name_is_no_earlier_lesson(folder: Path, tmp_path: Path) -> None:
    shown = tmp_path / "missed.png"
    shown.write_bytes(spots(folder)[0].read_bytes())
    first = fit(BGAD(**TINY, **QUICK, batch_size=4), folder, anomalous=[shown], max_false_alarm=0.5)
    shown.write_bytes(spots(folder)[1].read_bytes())
    with pytest.raises(DataError, match="another image now"):
        teach(first, anomalous=[shown])
    assert teach(first, anomalous=[shown], data=folder).detector.facts["defects"] == 2
    normal = folder / "train" / "good" / "000.png"
    normal.write_bytes((folder / "train" / "good" / "001.png").read_bytes())
    with pytest.raises(DataError, match="another image now"):
        teach(first, normal=folder.parent / "alarms")


def test_regions_of_single_images_are_kept(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :50] = 255
    roi = write(mask, tmp_path / "roi.png")
    good = sorted((folder / "train" / "good").iterdir())
    old = fit(PatchCore(**TINY), [amiss.Record(p, 0, roi=roi) for p in good], max_false_alarm=0.5)
    assert {r.roi for r in normals_of(old, None).records} == {roi}
    shown = [amiss.Record(spots(folder)[0], 1, roi=roi)]
    flows = teach(old, anomalous=shown, options=QUICK).detector
    assert [r.roi for r in defects_of(flows, None)] == [roi]


def test_cuts_of_a_taught_file_are_not_judged(folder: Path) -> None:
    spot, good = spots(folder)[0], sorted((folder / "train" / "good").iterdir())
    cuts = [amiss.Record(p, 0, split="train", crop=(0, 0, 60, 40)) for p in good]
    judged = [amiss.Record(p, 1, split="test", crop=(0, x, 60, 40))
              for p in (spot, spots(folder)[1]) for x in (0, 40)]  # fmt: skip
    old = fit(PatchCore(**TINY), cuts, max_false_alarm=0.5)
    taught = teach(old, anomalous=[spot], judge=[*cuts, *judged], options=QUICK)
    assert taught.after is not None
    assert {row.path for row in taught.after.judged} == {spots(folder)[1]}


def test_all_images_of_a_set_without_a_split_are_judged(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    textures(other / "good", 10, seed=8)
    textures(other / "dent", 2, seed=9, defects=True)
    taught = teach(patchcore(folder), normal=folder.parent / "alarms", judge=other)
    assert taught.after is not None and taught.after.operating_point["n_normal"] == 10
    (other / "dent" / "000.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amiss.teaching.fit", None)  # it is not come to
        with pytest.raises(DataError):
            teach(patchcore(folder), normal=folder.parent / "alarms", judge=other)


def test_another_region_than_that_of_the_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    upper, lower = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    upper[:30], lower[30:] = 255, 255
    old = patchcore(folder, roi=write(upper, tmp_path / "upper.png"))
    with pytest.raises(OptionError, match=r"lower\.png is another region"):
        teach(old, normal=folder.parent / "alarms", roi=write(lower, tmp_path / "lower.png"))


def test_a_later_lesson_corrects_an_earlier_one(folder: Path) -> None:
    x, y = spots(folder)
    said: list[str] = []
    first = teach(patchcore(folder), anomalous=[x, y], options=QUICK).detector
    second = teach(first, normal=[x], run=Run(say=said.append)).detector
    assert second.facts["defects"] == 1 and second.training_facts["n_normal"] == 9
    third = teach(second, anomalous=[x], run=Run(say=said.append)).detector
    assert third.facts["defects"] == 2 and third.training_facts["n_normal"] == 8
    assert sum("are left out" in line for line in said) == 2
    with pytest.raises(OptionError, match="learned as normal images before"):
        teach(patchcore(folder), normal=[folder / "train" / "good" / "000.png"])


def test_a_mask_that_is_given_later_is_taken(folder: Path) -> None:
    spot = spots(folder)[0]
    mask = folder / "ground_truth" / "spot" / f"{spot.stem}_mask.png"
    first = teach(patchcore(folder), anomalous=[amiss.Record(spot, 1)], options=QUICK).detector
    assert first.facts["unmasked_defects"] == 1
    second = teach(first, anomalous=[amiss.Record(spot, 1, mask)]).detector
    assert second.facts["unmasked_defects"] == 0 and second.facts["defects"] == 1


def test_folders_of_kinds_are_all_defects(folder: Path, tmp_path: Path) -> None:
    missed = tmp_path / "missed"
    for kind, path in zip(("hole", "crack"), spots(folder), strict=True):
        (missed / kind).mkdir(parents=True)
        (missed / kind / path.name).write_bytes(path.read_bytes())
        (missed / kind / f"{path.stem}_mask.png").write_bytes(path.read_bytes())
    found = anomalous_records(missed)
    assert [(r.kind, r.path.parent.name, len(r.masks)) for r in found] == [
        ("crack", "crack", 1), ("hole", "hole", 1),
    ]  # fmt: skip
    shutil.rmtree(missed / "crack")
    assert [r.kind for r in anomalous_records(missed)] == ["hole"]
    (missed / "hole" / "deep").mkdir()
    (missed / "hole" / "deep" / "x.png").write_bytes(path.read_bytes())
    with pytest.raises(DataError):
        anomalous_records(missed)


def test_masks_elsewhere_are_those_of_their_images(folder: Path, tmp_path: Path) -> None:
    masks = sorted((folder / "ground_truth" / "spot").iterdir())
    shown, elsewhere = tmp_path / "shown", tmp_path / "elsewhere"
    for kind, path in zip(("hole", "crack"), spots(folder), strict=True):
        (shown / kind).mkdir(parents=True)
        (shown / kind / "000.png").write_bytes(path.read_bytes())
        (elsewhere / kind).mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no mask of 2 defects, such as 000\.png"):
        anomalous_records(shown, elsewhere)
    for kind, mask in zip(("hole", "crack"), masks[:2], strict=True):
        (elsewhere / kind / "000_mask.png").write_bytes(mask.read_bytes())
        # the photograph beside its mask is none
        (elsewhere / kind / "000.png").write_bytes(spots(folder)[0].read_bytes())
    found = anomalous_records(shown, elsewhere)
    assert [r.mask for r in found] == [elsewhere / k / "000_mask.png" for k in ("crack", "hole")]
    listed = anomalous_records([shown / "hole" / "000.png"], elsewhere)
    assert listed[0].mask == elsewhere / "hole" / "000_mask.png"
    with pytest.raises(DataError, match="its own mask"):
        anomalous_records(shown / "hole", shown / "hole")
    shutil.rmtree(elsewhere)
    elsewhere.mkdir()
    (elsewhere / "000_mask.png").write_bytes(masks[0].read_bytes())
    with pytest.raises(DataError, match="fits two images"):
        anomalous_records(shown, elsewhere)
    with pytest.raises(DataError, match="name one that holds them"):
        anomalous_records([shown / "hole", shown / "crack"])


def test_images_without_a_label_are_no_defects(folder: Path) -> None:
    good = folder / "train" / "good" / "000.png"
    given = [
        amiss.Record(p, label)
        for p, label in zip([good, *spots(folder)], (0, 1, None), strict=True)
    ]
    assert [r.path for r in anomalous_records(given)] == [spots(folder)[0]]


def test_copies_of_test_images_are_known_by_their_content(folder: Path, tmp_path: Path) -> None:
    missed = tmp_path / "missed"
    missed.mkdir()
    for path in spots(folder):
        (missed / f"copy of {path.name}").write_bytes(path.read_bytes())
    taught = teach(patchcore(folder), anomalous=missed, options=QUICK)
    assert taught.after is not None and len(taught.after.judged) == 10
    assert taught.shown_kinds == ("spot",)


def test_false_alarms_are_learned_as_normal_and_set_no_threshold(folder: Path) -> None:
    alarms = folder.parent / "alarms"
    for old in (patchcore(folder), fit(PaDiM(**TINY, dim=10), folder, max_false_alarm=0.2)):
        before = [old.predict(path).score for path in sorted(alarms.iterdir())]
        taught = teach(old, normal=alarms)
        new = taught.detector
        assert type(new) is type(old) and new.config == old.config
        assert new.training_facts["n_normal"] == 10
        assert len(new.calibration.scores) == 8
        assert "of which 2 that were added do not count" in new.calibration.how
        after = [new.predict(path).score for path in sorted(alarms.iterdir())]
        assert all(b < a for a, b in zip(before, after, strict=True))
        assert taught.after is not None and len(taught.after.judged) == 12
        again = teach(new, normal=[str(path) for path in spots(folder, 1)]).detector
        assert again.training_facts["n_normal"] == 11
        assert len(again.training_facts["taught"]) == 2
        assert len(again.calibration.scores) == 8


def test_a_bgad_learns_on_with_all_that_it_was_shown(folder: Path) -> None:
    first = BGAD(**TINY, **QUICK, batch_size=4)
    fit(first, folder, anomalous=spots(folder, 1), max_false_alarm=0.5)
    taught = teach(first, anomalous=spots(folder, 3)[1:])
    assert taught.detector.facts["defects"] == 3
    assert taught.detector.config == first.config
    both = teach(taught.detector, normal=folder.parent / "alarms").detector
    assert both.facts["defects"] == 3 and both.training_facts["n_normal"] == 10


def test_a_set_to_judge_on_may_be_given(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    textures(other / "good", 4, seed=8)
    textures(other / "dent", 2, seed=9, defects=True)
    taught = teach(patchcore(folder), anomalous=spots(folder), judge=other, options=QUICK)
    assert taught.after is not None
    assert taught.after.operating_point["recall_by_kind"].keys() == {"dent"}
    assert "dent (taught or not)" in taught.describe()


def test_images_that_moved_are_found_by_their_content(folder: Path, tmp_path: Path) -> None:
    old = patchcore(folder)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"Of 8 normal images .* 0 were found"):
        teach(old, normal=folder.parent / "alarms")
    write(texture(np.random.default_rng(99)), moved / "train" / "good" / "new.png")
    taught = teach(old, normal=folder.parent / "alarms", data=moved)
    assert taught.detector.training_facts["n_normal"] == 10
    (moved / "train" / "good" / "000.png").unlink()
    with pytest.raises(DataError, match=r"Of 8 normal images .* 7 were found"):
        teach(old, normal=folder.parent / "alarms", data=moved)


def test_what_cannot_be_taught_is_refused(folder: Path, tmp_path: Path) -> None:
    old = patchcore(folder)
    with pytest.raises(OptionError, match="nothing to teach"):
        teach(old)
    with pytest.raises(DataError, match="holds 9 anomalous images, and"):
        teach(old, normal=folder)
    with pytest.raises(DataError, match="no such file"):
        teach(old, anomalous=[folder / "nothing.png"])
    mask = np.full((60, 80), 255, np.uint8)
    roi = write(mask, tmp_path / "roi.png")
    with_roi = patchcore(folder, roi=roi)
    with pytest.raises(OptionError, match=r"region of interest roi\.png"):
        teach(with_roi, normal=folder.parent / "alarms")
    assert teach(with_roi, normal=folder.parent / "alarms", roi=roi).detector.roi is not None


def test_a_file_keeps_its_versions_and_gives_them_back(folder: Path, tmp_path: Path) -> None:
    path = patchcore(folder).save(tmp_path / "part.amiss")
    first = path.read_bytes()
    teach_file(path, normal=folder.parent / "alarms")
    second = path.read_bytes()
    teach_file(path, anomalous=spots(folder), options=QUICK)
    assert [v.name for v in versions_of(path)] == ["part.amiss.1", "part.amiss.2"]
    assert isinstance(amiss.load(path), BGAD)
    third = path.read_bytes()
    assert undo(path).kept == path.with_name("part.amiss.undone")
    assert path.read_bytes() == second and len(versions_of(path)) == 1
    assert path.with_name("part.amiss.undone").read_bytes() == third
    assert undo(path).kept.name == "part.amiss.undone.2"
    assert path.read_bytes() == first and not versions_of(path)
    assert path.with_name("part.amiss.undone").read_bytes() == third  # and the other beside it
    assert path.with_name("part.amiss.undone.2").read_bytes() == second
    with pytest.raises(ArtifactError, match="was not taught"):
        undo(path)
    teach_file(path, normal=folder.parent / "alarms")
    fresh = patchcore(folder).save(path).read_bytes()
    with pytest.raises(ArtifactError, match="another detector was written there since"):
        undo(path)
    assert path.read_bytes() == fresh and len(versions_of(path)) == 1
    with pytest.raises(ArtifactError, match="no such file"):
        undo(tmp_path / "nothing.amiss")


def test_a_file_stays_as_it_is_where_teaching_fails(folder: Path, tmp_path: Path) -> None:
    path = patchcore(folder).save(tmp_path / "part.amiss")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(DataError):
        teach_file(path, normal=folder)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = patchcore(folder).save(tmp_path / "part.amiss")
    alarms = sorted((folder.parent / "alarms").iterdir())
    found = command(capsys, "teach", path, "--normal", alarms[0])
    assert found.status == 0, found.err
    assert "caught" in found.out and "--undo" in found.out
    told = command(capsys, "teach", path, "--normal", *alarms, "--judge", folder, "--json").json
    assert told["method"] == "patchcore" and told["after"]["operating_point"]["n_normal"] == 3
    assert len(versions_of(path)) == 2
    assert "as it was in part.amiss.2" in command(capsys, "teach", path, "--undo").out
    assert command(capsys, "teach", path, "--undo", "--json").json["undone"] == "part.amiss.1"
    failed = command(capsys, "teach", path, "--undo")
    assert failed.status == 1 and "was not taught" in failed.err
    for wrong in (
        ["--undo", "--normal", alarms[0]],
        ["--undo", "--data", folder],
        ["--mask-dir", tmp_path],
        [],
    ):
        assert command(capsys, "teach", path, *wrong).status == 1


def test_an_interrupted_lesson_goes_on(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amiss.teaching.ON_A_CPU", QUICK)
    path = patchcore(folder).save(tmp_path / "part.amiss")
    before = path.read_bytes()
    train, starts = amiss.training.train, []

    def stopped(*args: Any, **named: Any) -> Any:
        starts.append(named["stage"])
        if named["stage"] == "boundary" and starts.count("boundary") == 1:
            raise KeyboardInterrupt
        return train(*args, **named)

    monkeypatch.setattr("amiss.learning.flows.train", stopped)
    stop = command(capsys, "teach", path, "--anomalous", *spots(folder))
    assert stop.status == 130 and "teach.partial" in stop.err, stop.err
    assert path.read_bytes() == before and not versions_of(path)
    assert command(capsys, "teach", path, "--anomalous", *spots(folder)).status == 0
    assert not list(tmp_path.glob("*.partial*"))
    assert isinstance(amiss.load(path), BGAD)


def test_a_name_with_its_value_is_spread_as_well() -> None:
    assert spread(["teach", "p", "--normal=a", "b"]) == [
        "teach",
        "p",
        "--normal=a",
        "--normal",
        "b",
    ]


def test_names_are_put_before_each_of_several_paths() -> None:
    given = ["teach", "p.amiss", "--anomalous", "a", "b", "c", "--roi", "m", "--normal", "x", "y"]
    assert spread(given) == [
        "teach", "p.amiss", "--anomalous", "a", "--anomalous", "b", "--anomalous", "c",
        "--roi", "m", "--normal", "x", "--normal", "y",
    ]  # fmt: skip


def test_masks_among_listed_images_are_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = texture(rng)
        mask = spoil(image, 10, 10)
        write(image, tmp_path / f"{name}.png")
        if name == "a":
            write(mask.astype(np.uint8) * 255, tmp_path / "a_mask.png")
    found = anomalous_records(sorted(tmp_path.glob("*.png")))
    assert [(r.path.name, len(r.masks)) for r in found] == [("a.png", 1), ("b.png", 0)]
    assert all(r.label == 1 for r in found)


def test_nfad_is_taught_defects_as_a_bgad_of_the_same_layers(folder: Path) -> None:
    old = fit(NFAD(**TINY, blocks=2, epochs=2, batch_size=4), folder, max_false_alarm=0.5)
    new = teach(old, anomalous=spots(folder), options=QUICK).detector
    assert isinstance(new, BGAD)


@pytest.mark.parametrize("seed", range(6))
def test_false_alarms_are_never_held_out(folder: Path, seed: int) -> None:
    """Of methods that hold a fifth apart: what was picked is learned, and judges nothing."""
    options = {**TINY, "blocks": 2, "epochs": 1, "batch_size": 4}
    detector = fit(
        NFAD(**options), folder, also_normal=folder.parent / "alarms", max_false_alarm=0.5,
        run=amiss.Run(seed=seed),
    )  # fmt: skip
    assert detector.calibration is not None and len(detector.calibration.scores) == 1
    assert detector.facts["images"] == 9  # of eight and two, one of the eight is held out


def test_paths_from_elsewhere_and_their_masks_are_remembered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = textures(tmp_path / "missed", 3, seed=21, defects=True, masks=tmp_path / "masks")
    for path in sorted((tmp_path / "masks" / "missed").iterdir()):
        path.rename(missed / path.name)
    monkeypatch.chdir(tmp_path)
    old = patchcore(folder)
    first = teach(old, anomalous="missed", options=QUICK).detector
    assert first.facts["unmasked_defects"] == 0
    taught = teach(first, anomalous=spots(folder, 1), normal=["alarms/000.png"])
    assert taught.detector.facts["defects"] == 4
    assert taught.detector.facts["unmasked_defects"] == 1  # the one whose mask lies elsewhere
    assert taught.shown_kinds == ("spot",)
    again = teach(taught.detector, normal=["alarms/001.png"])
    assert again.detector.training_facts["n_normal"] == 10
    assert again.shown_kinds == ("spot",)  # taught before


def test_a_normal_image_that_is_a_missed_defect_is_taken_out(folder: Path) -> None:
    said: list[str] = []
    good = sorted((folder / "train" / "good").glob("*.png"))[:1]
    run = amiss.Run(say=said.append)
    taught = teach(patchcore(folder), anomalous=good, options=QUICK, run=run)
    assert taught.detector.training_facts["n_normal"] == 7
    assert any("1 of the missed defects were among the normal images" in line for line in said)


def test_no_version_is_written_over(folder: Path, tmp_path: Path) -> None:
    path = patchcore(folder).save(tmp_path / "part.amiss")
    (tmp_path / "part.amiss.3").write_bytes(b"third")
    teach_file(path, normal=folder.parent / "alarms")
    assert (tmp_path / "part.amiss.3").read_bytes() == b"third"
    assert versions_of(path)[-1].name == "part.amiss.4"
