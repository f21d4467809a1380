from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from addis.commands._calibration import statistics
from addis.commands._photo_model import PhotoModel
from addis.commands.explain import explain
from addis.models import create

pytestmark = pytest.mark.filterwarnings("ignore:the statistics rest on")


def factory() -> torch.nn.Module:
    """A small untrained classifier of three classes, of several stages."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, 2, 1),
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3),
    )  # fmt: skip


MODEL = "tests.commands.test_explain:factory"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.webp", "photo.jpg"):
        size = (50, 70, 3) if name == "photo.jpg" else (40, 40, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def run(folder: Path, photo: str = "photo.jpg", **options) -> None:
    settings = {"model": MODEL, "size": 32, "calibration": folder, "out": folder / "o.png"}
    explain(folder / photo, **{**settings, **options})


def test_a_picture_is_written_and_the_choices_are_told(folder, capsys):
    run(folder)
    said = capsys.readouterr().out
    assert Image.open(folder / "o.png").width > 300
    assert "the predicted class: no --target was given" in said
    assert "middle stage" in said
    assert "4 images of" in said
    assert "rough" in said
    assert "bits pass" in said
    assert f"wrote {folder / 'o.png'}" in said


def test_a_named_target_is_explained_beside_the_predicted(folder, capsys):
    run(folder)
    predicted = int(capsys.readouterr().out.split("class ")[1].split(",")[0])
    run(folder, target=str((predicted + 1) % 3))
    said = capsys.readouterr().out
    assert f"class {(predicted + 1) % 3}," in said
    assert f"predicted is {predicted}" in said
    assert "no --target" not in said


def test_statistics_are_written_once_and_read_again(folder, capsys):
    stats = folder / "stats.safetensors"
    run(folder, stats=stats, layer="1")
    assert f"written to {stats}" in capsys.readouterr().out
    first = (folder / "o.png").read_bytes()
    run(folder, stats=stats, layer="1", calibration=None)
    assert f"statistics read from {stats}" in capsys.readouterr().out
    assert (folder / "o.png").read_bytes() == first


@pytest.mark.parametrize("method", ["gradcam", "saliency"])
def test_baselines_are_drawn_without_a_unit(folder, capsys, method):
    run(folder, method=method, calibration=None)
    assert "without a unit" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["random", "smoothgrad", "rise"])
def test_the_seed_decides_what_a_baseline_draws(folder, method):
    written = []
    for seed in (0, 0, 1):
        run(folder, method=method, calibration=None, seed=seed)
        written.append((folder / "o.png").read_bytes())
    assert written[0] == written[1] != written[2]


def test_the_layer_that_a_cam_reads_is_told_with_its_reason(folder, capsys):
    run(folder, method="gradcam", calibration=None)
    assert "layer 3 (the last layer with a feature map, 8x8); gradcam" in capsys.readouterr().out
    run(folder, method="gradcam", calibration=None, layer="1")
    assert "layer 1; gradcam" in capsys.readouterr().out
    run(folder, method="saliency", calibration=None)
    assert "; saliency" not in capsys.readouterr().out


def test_a_layer_can_be_named_for_cams_only(folder):
    run(folder, method="gradcam", layer="1")
    with pytest.raises(ValueError, match="reads the input"):
        run(folder, method="saliency", layer="1")


def test_files_that_are_no_photos_are_refused(folder):
    (folder / "note.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"note\.txt is not an image"):
        run(folder, "note.txt")
    with pytest.raises(FileNotFoundError, match="no file"):
        run(folder, "missing.jpg")
    whole = (folder / "photo.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        run(folder, "cut.jpg")


def test_a_decompression_bomb_is_refused(folder, monkeypatch):
    for limit in (3000, 1000):  # 3500 pixels: over the limit, and over twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"more than the {limit} pixels"):
            run(folder)


def test_arguments_that_do_not_fit_are_named(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="method must be iba or one of"):
        run(folder, method="magic")
    with pytest.raises(ValueError, match=r"target must lie in \[0, 2\]"):
        run(folder, target="3")
    with pytest.raises(ValueError, match="classes have no names"):
        run(folder, target="cat")
    with pytest.raises(ValueError, match="closest names"):
        run(folder, layer="nowhere")
    with pytest.raises(ValueError, match="holds 0 images"):
        run(folder, calibration=tmp_path_factory.mktemp("empty"))


@pytest.mark.data
def test_the_photos_at_hand_are_explained_by_squeezenet(addis_data, tmp_path, capsys):
    from addis import data

    photos = data.load("imagenet_samples")
    stats = tmp_path / "stats.safetensors"
    path = tmp_path / "photo.png"
    Image.fromarray(photos[17][0].permute(1, 2, 0).numpy()).save(path)
    few = tmp_path / "few"
    few.mkdir()
    for index in range(6):
        image = Image.fromarray(photos[index * 30][0].permute(1, 2, 0).numpy())
        image.save(few / f"{index}.png")
    explain(path, calibration=few, stats=stats, out=tmp_path / "o.png", target="Quail")
    said = capsys.readouterr().out
    assert "class quail (85)" in said
    assert "features.10" in said
    with pytest.raises(ValueError, match=r"did you mean .*'quail'"):
        explain(path, stats=stats, out=tmp_path / "o.png", target="quial")


def test_statistics_of_another_layer_are_refused(folder):
    stats = folder / "stats.safetensors"
    run(folder, stats=stats, layer="1")
    with pytest.raises(ValueError, match="statistics of layer 1, not of 3"):
        run(folder, stats=stats, layer="3")


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """The folder of kept statistics, empty."""
    monkeypatch.setenv("ADDIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


def zoo_model(seed: int = 0, **changes) -> PhotoModel:
    torch.manual_seed(seed)
    settings = {
        "source": "resnet20", "module": create("resnet20").eval(), "size": 32,
        "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "classes": (), "photos": "cifar10",
        "device": "cpu",
    }  # fmt: skip
    return PhotoModel(**{**settings, **changes})


def test_statistics_are_kept_for_the_next_call(folder, kept):
    first, source = statistics(zoo_model(), "layer1", None, folder)
    assert source.startswith("statistics from 4 images")
    second, source = statistics(zoo_model(), "layer1", None, folder)
    assert source.startswith("statistics kept from 4 images")
    assert len(list(kept.iterdir())) == 1
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"size": 28}, {"mean": (0.4, 0.5, 0.5)}, {"source": "resnet32"}],
    ids=str,
)
def test_statistics_of_anything_else_are_estimated_anew(folder, kept, other):
    statistics(zoo_model(), "layer1", None, folder)
    _, source = statistics(zoo_model(**other), "layer1", None, folder)
    assert source.startswith("statistics from")


def test_other_images_and_layers_are_estimated_anew(folder, kept):
    statistics(zoo_model(), "layer1", None, folder)
    assert statistics(zoo_model(), "layer2", None, folder)[1].startswith("statistics from")
    (folder / "a.png").write_bytes((folder / "photo.jpg").read_bytes())
    assert statistics(zoo_model(), "layer1", None, folder)[1].startswith("statistics from")


def test_statistics_of_an_own_factory_are_not_kept(folder, kept):
    run(folder)
    assert not kept.exists()


def test_damaged_kept_statistics_are_replaced(folder, kept):
    statistics(zoo_model(), "layer1", None, folder)
    (path,) = kept.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert statistics(zoo_model(), "layer1", None, folder)[1].startswith("statistics from")
    assert statistics(zoo_model(), "layer1", None, folder)[1].startswith("statistics kept")


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ADDIS_CACHE", str(tmp_path / "file"))
    assert statistics(zoo_model(), "layer1", None, folder)[0].n == 4


def test_a_damaged_file_of_statistics_is_refused(folder):
    stats = folder / "stats.safetensors"
    run(folder, stats=stats, layer="1")
    stats.write_bytes(stats.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"stats\.safetensors is damaged"):
        run(folder, stats=stats, layer="1")
