"""Made defects: the transforms of a cut, Poisson's equation, Perlin noise and the generators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amiss.data import rpag as rpag_module
from amiss.data.foreground import FOREGROUNDS
from amiss.data.perlin import perlin_noise
from amiss.data.poisson import blend, laplacian, solve_poisson
from amiss.data.synthesis import (
    GENERATORS,
    CutPaste,
    Defect,
    Generator,
    Perlin,
    Rpag,
    defect_records,
    read_defects,
)
from amiss.data.transforms import TRANSFORMS, Cut, bounds, cut_out
from amiss.errors import DataError, ImageError, OptionError
from amiss.types import Bool, Record, UInt8
from made_images import texture, textures, write

H, W = 60, 80
GEOMETRIC = ("flip", "rotate", "transpose", "distortion", "translation")
PHOTOMETRIC = ("noise", "brightness", "sharpness", "blur")


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(seed: int = 0) -> UInt8:
    return texture(rng(seed), (H, W))


def blot(top: int = 20, left: int = 30, height: int = 12, width: int = 20) -> Bool:
    """An uneven mask: a rectangle without a corner."""
    mask = np.zeros((H, W), np.bool_)
    mask[top : top + height, left : left + width] = True
    mask[top : top + height // 2, left : left + width // 2] = False
    return mask


def painted(mask: Bool, seed: int = 5) -> UInt8:
    image = texture(rng(seed), (H, W))
    image[mask] = 250
    return image


def defect(mask: Bool | None = None) -> Defect:
    mask = blot() if mask is None else mask
    return Defect(painted(mask), mask)


def three(**options: object) -> dict[str, Generator]:
    others = [normal(seed) for seed in range(1, 5)]
    return {
        "rpag": Rpag([defect(), defect(blot(5, 5, 30, 9))], **options),  # type: ignore[arg-type]
        "perlin": Perlin(**options),  # type: ignore[arg-type]
        "cut_paste": CutPaste(others, **options),  # type: ignore[arg-type]
    }


# --- transforms ------------------------------------------------------------------------------


def test_the_nine_transforms_are_the_papers() -> None:
    assert set(TRANSFORMS) == {*GEOMETRIC, *PHOTOMETRIC} and len(TRANSFORMS) == 9


def test_a_cut_holds_what_is_around_the_mask() -> None:
    image, mask = normal(), blot()
    cut = cut_out(image, mask)
    top, left = cut.corner
    h, w = cut.mask.shape
    assert np.array_equal(cut.pixels, image[top : top + h, left : left + w])
    assert np.array_equal(cut.mask, mask[top : top + h, left : left + w])
    assert cut.mask.sum() == mask.sum() and bounds(mask) == (20, 32, 30, 50)
    corner = cut_out(image, blot(0, 0, 4, 4))
    assert corner.corner[0] < 0 and (corner.pixels[0, 0] == image[0, 0]).all()


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("seed", range(4))
def test_a_mask_moves_with_its_image(name: str, seed: int) -> None:
    mask = blot()
    as_image = np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * np.uint8(255)
    changed = TRANSFORMS[name](cut_out(as_image, mask), rng(seed))
    assert np.array_equal(changed.pixels[:, :, 0] > 127, changed.mask)
    assert 0.8 < changed.mask.sum() / mask.sum() < 1.25
    before = cut_out(as_image, mask)
    moved = changed.centre != before.centre
    differs = changed.mask.shape != before.mask.shape or (changed.mask != before.mask).any()
    assert moved or differs


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_a_photometric_transform_leaves_the_mask_and_gray(name: str) -> None:
    image = np.repeat(normal()[:, :, :1], 3, axis=2)
    before = cut_out(image, blot())
    after = TRANSFORMS[name](before, rng(1))
    assert np.array_equal(after.mask, before.mask) and after.centre == before.centre
    assert (after.pixels != before.pixels).any() and after.pixels.dtype == np.uint8
    assert (after.pixels == after.pixels[:, :, :1]).all()
    level = before.pixels.mean()
    assert abs(after.pixels.mean() - level) < (0.35 * level if name == "brightness" else 2)


def in_frame(cut: Cut) -> Bool:
    """The mask of a cut, drawn where it lies in its frame."""
    frame = np.zeros(cut.frame, np.bool_)
    (top, left), (rows, columns) = cut.corner, cut.mask.nonzero()
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < frame.shape[0]) & (columns >= 0) & (columns < frame.shape[1])
    frame[rows[inside], columns[inside]] = True
    return frame


@pytest.mark.parametrize("seed", range(6))
def test_flips_and_turns_are_those_of_the_whole_image(seed: int) -> None:
    mask = blot(8, 12)
    drawn = in_frame(TRANSFORMS["flip"](cut_out(normal(), mask), rng(seed)))
    assert np.array_equal(drawn, mask[:, ::-1]) or np.array_equal(drawn, mask[::-1])
    square = mask[:, :H]
    cut = cut_out(normal()[:, :H], square)
    assert np.array_equal(in_frame(TRANSFORMS["transpose"](cut, rng(seed))), square.T)
    angle = rng(seed).uniform(-90, 90)  # the only number that a rotation draws
    whole = Image.fromarray(mask.astype(np.uint8) * 255).rotate(angle, Image.Resampling.BILINEAR)
    turned = np.asarray(whole) > 127
    drawn = in_frame(TRANSFORMS["rotate"](cut_out(normal(), mask), rng(seed)))
    assert (drawn & turned).sum() > 0.85 * (drawn | turned).sum() > 0


def test_a_transposed_place_stays_in_a_frame_that_is_no_square() -> None:
    cut = TRANSFORMS["transpose"](cut_out(normal(), blot(2, 60, 6, 16)), rng(0))
    assert cut.frame == (H, W)
    row, column = cut.centre
    assert (row, column) == pytest.approx((68 * H / W, 5 * W / H))


# --- RPAG ------------------------------------------------------------------------------------


def middle(mask: Bool) -> tuple[int, int]:
    rows, columns = mask.nonzero()
    return round(rows.mean()), round(columns.mean())


@pytest.mark.parametrize("seed", range(10))
def test_random_placement_puts_the_middle_on_the_foreground(seed: int) -> None:
    place = np.zeros((H, W), np.bool_)
    place[25:35, 30:50] = True  # so far inside that nothing is clipped
    image = normal()
    made = Rpag([defect()], foreground=place)(image, rng(seed))
    row, column = middle(made.mask)
    assert place[row, column]
    assert 0.8 < made.mask.sum() / blot().sum() < 1.25


def test_without_transforms_the_cut_itself_is_pasted_hard() -> None:
    place = np.zeros((H, W), np.bool_)
    place[40, 25] = True
    known = defect()
    made = Rpag([known], count=0, foreground=place)(normal(), rng(0))
    row, column = middle(known.mask)
    expected = np.roll(known.mask, (40 - row, 25 - column), (0, 1))
    assert np.array_equal(made.mask, expected)
    assert np.array_equal(made.image[made.mask], known.image[known.mask])


@pytest.mark.parametrize("corner", [(0, 0), (0, W - 1), (H - 1, 0), (H - 1, W - 1)])
def test_a_cut_is_clipped_at_the_border(corner: tuple[int, int]) -> None:
    place = np.zeros((H, W), np.bool_)
    place[corner] = True
    made = Rpag([defect()], count=0, foreground=place)(normal(), rng(0))
    row, column = middle(blot())
    wide = np.pad(blot(), ((H, H), (W, W)))
    wide = np.roll(wide, (corner[0] - row, corner[1] - column), (0, 1))
    expected = wide[H:-H, W:-W]
    assert np.array_equal(made.mask, expected) and 0 < expected.sum() < blot().sum()


def test_in_place_leaves_what_lies_on_the_foreground_to_more_than_two_thirds() -> None:
    known = defect(blot(20, 30, 12, 21))
    mask = known.mask
    two_thirds = np.zeros((H, W), np.bool_)
    places = np.argwhere(mask)
    limit = len(places) * 2 // 3
    assert limit * 3 == len(places) * 2
    two_thirds[tuple(places[:limit].T)] = True
    more = two_thirds.copy()
    more[tuple(places[limit])] = True
    for seed in range(5):
        made = Rpag([known], count=0, placement="in_place", foreground=more)(normal(), rng(seed))
        assert np.array_equal(made.mask, mask)
    moved = [
        Rpag([known], count=0, placement="in_place", foreground=two_thirds)(normal(), rng(seed))
        for seed in range(5)
    ]
    assert all(two_thirds[middle(made.mask)] for made in moved)
    assert not all(np.array_equal(made.mask, mask) for made in moved)


def test_in_place_moves_each_part_for_itself() -> None:
    mask = np.zeros((H, W), np.bool_)
    mask[5:10, 5:10] = mask[50:55, 70:75] = True
    place = np.zeros((H, W), np.bool_)
    place[30, 20] = place[30, 60] = True
    spots = np.zeros((H, W), np.bool_)
    for row, column in ((30, 20), (30, 60)):
        spots[row - 2 : row + 3, column - 2 : column + 3] = True
    made = [
        Rpag([defect(mask)], count=0, placement="in_place", foreground=place)(normal(), rng(seed))
        for seed in range(12)
    ]
    assert all((m.mask <= spots).all() for m in made)
    assert {int(m.mask.sum()) for m in made} == {25, 50}  # both on one place, or one on each


def test_without_any_foreground_all_is_pasted_in_place() -> None:
    nothing = np.zeros((H, W), np.bool_)
    for seed in range(5):
        made = Rpag([defect()], count=0, foreground=nothing)(normal(), rng(seed))
        assert np.array_equal(made.mask, blot())


@pytest.mark.parametrize("placement", ["random", "in_place"])
def test_a_mask_of_one_pixel_survives(placement: rpag_module.Placement) -> None:
    mask = np.zeros((H, W), np.bool_)
    mask[0, W - 1] = True
    generator = Rpag([defect(mask)], count=9, placement=placement)
    for seed in range(40):
        made = generator(normal(), rng(seed))
        assert 1 <= made.mask.sum() <= 9 and (made.image[made.mask] > 0).any()


def test_where_transforms_lose_the_mask_the_defect_comes_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def lose(cut: Cut, _: np.random.Generator) -> Cut:
        tried.append(cut)
        return Cut(cut.pixels, np.zeros_like(cut.mask), cut.centre, cut.frame)

    monkeypatch.setattr(rpag_module, "TRANSFORMS", dict.fromkeys(TRANSFORMS, lose))
    made = Rpag([defect()], count=1, placement="in_place", foreground="all")(normal(), rng(0))
    assert np.array_equal(made.mask, blot()) and len(tried) == 5


def test_a_ring_about_the_only_place_still_leaves_a_mask() -> None:
    y, x = np.mgrid[:H, :W]
    distance = np.hypot(y - 30, x - 40)
    ring = (distance > 10) & (distance < 13)
    spot = np.zeros((H, W), np.bool_)
    spot[30, 40] = True  # its middle would be the only pixel that may change, and holds nothing
    made = Rpag([defect(ring)], count=0, foreground="all")(normal(), rng(0), spot)
    assert np.array_equal(made.mask, spot) and (made.image[30, 40] == 250).all()


def test_count_different_transforms_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def note(name: str) -> Callable[[Cut, np.random.Generator], Cut]:
        return lambda cut, _: used.append(name) or cut

    monkeypatch.setattr(rpag_module, "TRANSFORMS", {name: note(name) for name in TRANSFORMS})
    seen = set()
    for seed in range(20):
        used.clear()
        Rpag([defect()], count=4)(normal(), rng(seed))
        assert len(used) == len(set(used)) == 4
        seen |= set(used)
    assert seen == set(TRANSFORMS)


def test_rpag_refuses_what_it_cannot_use() -> None:
    with pytest.raises(DataError, match="there are none"):
        Rpag([])
    for count in (-1, 10):
        with pytest.raises(OptionError, match=f"count is {count}; allowed is 0 to 9"):
            Rpag([defect()], count=count)
    with pytest.raises(OptionError, match="placement='here'"):
        Rpag([defect()], placement="here")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="60 x 80 pixels, the image of 80 x 60"):
        Rpag([defect()])(np.zeros((W, H, 3), np.uint8), rng(0))
    with pytest.raises(DataError, match="mask of a defect is empty"):
        Defect(normal(), np.zeros((H, W), np.bool_))
    with pytest.raises(OptionError, match="its image wants"):
        Defect(normal(), np.ones((W, H), np.bool_))


# --- Poisson ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 14), (32, 5)])
def test_the_solution_satisfies_the_discrete_equation(size: tuple[int, int]) -> None:
    h, w = size
    target, border = rng(0).normal(size=(h, w, 3)), rng(1).normal(size=(h + 2, w + 2, 3))
    whole = border.copy()
    whole[1:-1, 1:-1] = solve_poisson(target, border)
    assert np.abs(laplacian(whole) - target).max() < 1e-8


def test_only_the_border_is_read() -> None:
    target, border = rng(0).normal(size=(5, 6, 1)), rng(1).normal(size=(7, 8, 1))
    other = border.copy()
    other[1:-1, 1:-1] = 1e6
    other[[0, 0, -1, -1], [0, -1, 0, -1]] = 1e6
    assert np.array_equal(solve_poisson(target, border), solve_poisson(target, other))


def test_a_constant_border_and_patch_give_the_constant() -> None:
    ground = np.full((9, 12, 3), 77, np.uint8)
    ground[1:-1, 1:-1] = rng(0).integers(0, 255, (7, 10, 3))
    blended = blend(np.full((9, 12, 3), 200, np.uint8), ground)
    assert (blended == 77).all()


def test_a_patch_keeps_its_differences_and_takes_the_level_of_the_ground() -> None:
    patch = rng(0).integers(100, 130, (10, 14, 3)).astype(np.uint8)
    patch[[0, -1]] = patch[:, [0, -1]] = 110
    ground = np.full((10, 14, 3), 60, np.uint8)
    assert np.array_equal(blend(patch, ground), patch - 50)
    patch[5, 5] = 255
    assert blend(patch, ground + 180)[5, 5].tolist() == [255, 255, 255]  # and not beyond, from 0


# --- Perlin ----------------------------------------------------------------------------------


@pytest.mark.parametrize("waves", [(1, 1), (2, 8), (16, 4)])
def test_perlin_noise_is_smooth_and_about_zero(waves: tuple[int, int]) -> None:
    made = [perlin_noise((96, 128), waves, rng(seed)) for seed in range(30)]
    noise = np.stack(made)
    assert noise.shape == (30, 96, 128) and np.abs(noise).max() <= 1
    assert abs(noise.mean()) < 0.1 and 0.2 < noise.std() < 0.5
    # By the mean value theorem no pixel step can be larger than the steepest slope of the noise,
    # which a wave spreads over at least 96 / waves pixels.
    assert np.abs(np.diff(noise, axis=1)).max() < 6 * max(waves) / 96
    assert np.abs(np.diff(noise, axis=2)).max() < 6 * max(waves) / 96


def test_perlin_noise_has_as_many_waves_as_asked_for() -> None:
    def crossings(waves: int) -> float:
        """How often noise changes its sign from top to bottom."""
        made = [perlin_noise((128, 128), (waves, waves), rng(seed)) > 0 for seed in range(10)]
        return float(np.mean([np.diff(high, axis=0).sum(axis=0).mean() for high in made]))

    few, more, many = crossings(2), crossings(8), crossings(32)
    assert few * 2 < more and more * 2 < many


def test_masks_of_perlin_noise_cover_a_part_of_the_image() -> None:
    generator = Perlin()
    shares = np.array([generator(normal(), rng(seed)).mask.mean() for seed in range(60)])
    assert (shares > 0).all() and shares.max() < 0.6
    assert 0.02 < shares.mean() < 0.2


def test_the_texture_is_gray_on_a_gray_image_and_more_or_less_opaque() -> None:
    gray = np.full((H, W, 3), 128, np.uint8)
    made = [Perlin()(gray, rng(seed)) for seed in range(10)]
    assert all((m.image == m.image[:, :, :1]).all() for m in made)
    coloured = gray.copy()
    coloured[0, 0, 0] = 129
    made = [Perlin()(coloured, rng(seed)) for seed in range(10)]
    assert any((m.image[m.mask] != m.image[m.mask][:, :1]).any() for m in made)


def test_textures_come_from_the_pictures_given(tmp_path: Path) -> None:
    red = np.zeros((40, 50, 3), np.uint8)
    red[..., 0] = 200
    pictures = [Record(write(red, tmp_path / "red.png"))]
    ground = np.full((H, W, 3), 100, np.uint8)
    ground[..., 2] = 101
    made = Perlin(pictures)(ground, rng(3))
    inside = made.image[made.mask]
    assert len(np.unique(inside, axis=0)) == 1  # one colour over one colour is one colour
    with pytest.raises(OptionError, match="no pictures"):
        Perlin([])
    with pytest.raises(ImageError, match=r"gone\.png"):
        Perlin([Record(tmp_path / "gone.png")])(ground, rng(0))


def test_where_noise_is_never_high_the_highest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(-1, 0, H * W).reshape(H, W)
    monkeypatch.setattr("amiss.data.perlin.perlin_noise", lambda *_: ramp)
    mask = Perlin()(normal(), rng(0)).mask
    assert 0.005 < mask.mean() < 0.02 and ramp[mask].min() > ramp[~mask].max()


# --- patches of normal images ----------------------------------------------------------------


def test_a_patch_is_pasted_inside_the_foreground() -> None:
    place = np.zeros((H, W), np.bool_)
    place[30, 40] = True
    made = CutPaste([normal(1)], foreground=place)(normal(), rng(0))
    top, bottom, left, right = bounds(made.mask)
    assert top >= 30 - 9 and bottom <= 30 + 9 and left >= 40 - 12 and right <= 40 + 12


def test_patches_are_small_against_the_image_and_in_one_piece() -> None:
    generator = CutPaste([normal(seed) for seed in range(1, 4)])
    for seed in range(20):
        top, bottom, left, right = bounds(generator(normal(), rng(seed)).mask)
        assert bottom - top <= 0.25 * H + 1 and right - left <= 0.25 * W + 1


def test_normal_images_may_be_of_another_size() -> None:
    made = CutPaste([texture(rng(7), (20, 31))])(normal(), rng(0))
    assert made.image.shape == (H, W, 3) and made.mask.any()


def test_images_that_are_all_the_same_are_refused() -> None:
    flat = np.full((H, W, 3), 90, np.uint8)
    with pytest.raises(DataError, match="No patch"):
        CutPaste([flat])(flat, rng(0))
    with pytest.raises(DataError, match="no normal images"):
        CutPaste([])
    with pytest.raises(OptionError, match="too small"):
        CutPaste([normal()])(normal()[:2], rng(0))


# --- what all have in common -----------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("choice", FOREGROUNDS)
def test_pixels_outside_of_the_mask_are_untouched(name: str, choice: str) -> None:
    generator = three(foreground=choice)[name]
    for seed in range(12):
        image = normal(seed)
        before = image.copy()
        made = generator(image, rng(seed), None)
        assert np.array_equal(image, before)
        assert made.image.shape == (H, W, 3) and made.image.dtype == np.uint8
        assert made.mask.shape == (H, W) and made.mask.dtype == np.bool_ and made.mask.any()
        assert np.array_equal(made.image[~made.mask], image[~made.mask])
        assert (made.image[made.mask] != image[made.mask]).any()


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_makes_the_same_and_another_makes_another(name: str) -> None:
    generator, again = three()[name], three()[name]
    np.random.seed(0)  # noqa: NPY002 - which must not matter
    first = generator(normal(), rng(3))
    np.random.seed(1)  # noqa: NPY002
    second, other = again(normal(), rng(3)), generator(normal(), rng(4))
    assert np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)
    assert not np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize("name", GENERATORS)
def test_all_stays_inside_the_region_of_interest(name: str) -> None:
    roi = np.zeros((H, W), np.bool_)
    roi[10:40, 20:45] = True
    for choice in ("otsu", "all", blot(0, 0, 50, 60), blot(50, 60, 5, 5)):
        generator = three(foreground=choice)[name]
        for seed in range(8):
            made = generator(normal(), rng(seed), roi)
            assert made.mask.any() and not (made.mask & ~roi).any()
            assert np.array_equal(made.image[~roi], normal()[~roi])


@pytest.mark.parametrize("name", GENERATORS)
def test_a_foreground_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="foreground='nowhere' is not known"):
        three(foreground="nowhere")[name]
    with pytest.raises(OptionError, match=r"wants \(60, 80\) bool"):
        three()[name](normal(), rng(0), np.ones((W, H), np.bool_))


# --- known defects from files ----------------------------------------------------------------


def names(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(r.path.name, r.masks[0].name) for r in records]


def test_defects_of_a_set_are_its_images_with_masks(labelled: Path, tmp_path: Path) -> None:
    found = defect_records(labelled)
    assert len(found) == 6 and {record.label for record in found} == {1}
    (tmp_path / "test").symlink_to(labelled / "test")
    found = defect_records(tmp_path / "test", labelled / "ground_truth")
    assert len(found) == 6
    with pytest.raises(DataError, match="of 6 images that are not normal, none has a mask"):
        defect_records(tmp_path / "test")


def test_a_folder_of_images_right_in_it_is_one_of_defects(labelled: Path, tmp_path: Path) -> None:
    scratches, masks = labelled / "test" / "scratch", labelled / "ground_truth" / "scratch"
    expected = [(f"{n:03}.png", f"{n:03}_mask.png") for n in range(4)]
    assert names(defect_records(scratches, masks)) == expected
    textures(tmp_path / "a", 2, seed=1, defects=True, masks=tmp_path)  # beside their images
    assert names(defect_records(tmp_path / "a")) == expected[:2]
    with pytest.raises(DataError, match="of 4 images that are not normal, none has a mask"):
        defect_records(scratches)


def test_defects_are_read_at_one_size_and_empty_masks_passed_over(tmp_path: Path) -> None:
    empty, dot = np.zeros((H, W), np.bool_), np.zeros((H, W), np.bool_)
    dot[0, 0] = True  # which falls between the pixels of a smaller mask
    records = [Record(write(normal(), tmp_path / "none.png"))]
    for name, mask in (("blot", blot()), ("empty", empty), ("dot", dot)):
        picture = write(painted(mask), tmp_path / f"{name}.png")
        records.append(Record(picture, 1, write(mask, tmp_path / f"{name}_mask.png")))
    (found,) = read_defects(records, (30, 20))
    assert found.image.shape == (30, 20, 3) and found.mask.shape == (30, 20)
    assert found.image[found.mask].mean() > 220 > found.image[~found.mask].mean()
    assert len(read_defects(records, (H, W))) == 2
    with pytest.raises(DataError, match="None of 2 images"):
        read_defects(records[:1] + records[2:3], (H, W))
    write(blot()[:, :9], tmp_path / "blot_mask.png")
    with pytest.raises(DataError, match="60 x 9 pixels, and its image"):
        read_defects(records, (H, W))
