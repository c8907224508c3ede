"""HDTF and TalkingHead-1KH as tensorflow-datasets, from lists and videos as a user has them."""

import dataclasses
import sys
from fractions import Fraction

import numpy as np
import pytest
from test_face import drawn_clip

from svdp_jax.media.writer import VideoWriter
from svdp_jax.preparation import stages

tfds = pytest.importorskip("tensorflow_datasets")

LISTS = {
    "Hdtf": {"RD_annotion_time.txt": "Radio1.mp4 00:00-00:02\nRadio2.mp4 00:00-00:01\n"},
    "TalkingHead1kh": {"": "Radio1,240,240,3,40,0,0,240,240\n"},
}


@pytest.mark.parametrize("name,count", [("Hdtf", 45), ("TalkingHead1kh", 38)])
def test_clips_that_a_list_names(tmp_path, name, count, monkeypatch):
    builders = pytest.importorskip("svdp_jax.preparation.builders")
    (tmp_path / "manual" / "videos").mkdir(parents=True)
    with VideoWriter(tmp_path / "manual" / "videos" / "Radio1.mp4", Fraction(25)) as writer:
        for image in drawn_clip(45)[0]:
            writer.write(image)
    for file, text in LISTS[name].items():
        path = tmp_path / "manual" / "list" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    kind = getattr(builders, name)
    eased = dataclasses.replace(stages.Settings(), size=64, limits=("face=20", "sharpness=0"))
    monkeypatch.setattr(kind, "settings", eased)
    builder = kind(data_dir=tmp_path / "out", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "manual"))
    (example,) = builder.as_data_source("train")
    frames = builders.decoded(example)
    assert frames.shape == (count, 64, 64, 3) and frames.dtype == np.uint8 and example["fps"] == 25
    assert b"Radio1" in example["name"] and "tensorflow" not in sys.modules
