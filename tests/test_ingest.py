"""What is found: folders, names of known datasets, and the datasets' own lists, written as their authors write them."""

import json

import numpy as np
import pytest

from svdp_jax.errors import UserError
from svdp_jax.media.images import write_image
from svdp_jax.preparation import ingest


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    return [str(folder)]


def test_folders_globs_and_names_that_datasets_give(tmp_path):
    inputs = touch(tmp_path, "a b.mp4", "Eve/1.mov", "Eve/2.MKV", "notes.txt", "Clip+x-Y_z+P1+C0+F10-99.mp4",
                   "0123456789A_7.mp4", "0123456789A_0003_S0_E9_L1_T2_R3_B4.mp4")  # fmt: skip
    people = {source.name: source.person for source in ingest.find(inputs).sources}
    assert people == {
        "a_b": "a_b", "Eve__1": "Eve", "Eve__2": "Eve", "Clip+x-Y_z+P1+C0+F10-99": "x-Y_z+P1",
        "0123456789A_7": "0123456789A", "0123456789A_0003_S0_E9_L1_T2_R3_B4": "0123456789A",
    }  # fmt: skip
    globbed = ingest.find([str(tmp_path / "Eve" / "*.mov"), str(tmp_path / "Eve" / "*")])
    assert [source.name for source in globbed.sources] == ["1", "2"]


def test_names_stay_apart(tmp_path):
    names = [source.name for source in ingest.find(touch(tmp_path, "a.mp4", "a.mov", "a_.mp4")).sources]
    assert len(set(names)) == 3 and sorted(names) == sorted(names, key=str)


def test_a_folder_of_pictures_is_a_video(tmp_path):
    folder = tmp_path / "Clip+abc+P0+C0+F1-4"
    folder.mkdir()
    for index in range(3):
        write_image(folder / f"{index:05}.png", np.full((4, 6, 3), index, np.uint8))
    (source,) = ingest.find([str(tmp_path)]).sources
    frames = list(ingest.frames(source.path))
    assert source.person == "abc+P0" and ingest.expected_frames(source.path) == 3
    assert [(f.image[0, 0, 0], f.time * 25) for f in frames] == [(0, 0), (1, 1), (2, 2)]


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        ingest.find([str(tmp_path / "no")])
    with pytest.raises(UserError, match="holds no video"):
        ingest.find([str(tmp_path)])


def test_hdtf(tmp_path):
    lists = tmp_path / "HDTF_dataset"
    lists.mkdir()
    (lists / "WRA_annotion_time.txt").write_text(
        "Ann0.mp4 00:20-01:35 02:00-02:10 \nAnn1.mp4 00:33-08:53 08:10-08:30\nBob.mp4 00:01-00:02\n"
    )
    (lists / "WRA_crop_wh.txt").write_text("Ann0_0.mp4 306 480 41 480\n")
    (lists / "WRA_resolution.txt").write_text("Ann0.mp4 720\nAnn1.mp4 1080\n")
    (lists / "WRA_video_url.txt").write_text("Bob https://www.youtube.com/watch?v=abc-_123456\n")
    (lists / "RD_annotion_time.txt").write_text("Radio1.mp4 00:05-00:09\n")
    videos = touch(tmp_path / "videos", "WRA_Ann0.mp4", "Ann1.mp4", "abc-_123456.mp4")
    listing = ingest.find(videos, str(lists))
    sources = {source.name: source for source in listing.sources}
    assert list(sources) == ["WRA_Ann0", "WRA_Ann1", "WRA_Ann1-1", "WRA_Bob"]
    assert [name for name, _ in listing.missing] == ["RD_Radio1"]
    assert {source.person for source in listing.sources} == {"WRA_Ann", "WRA_Bob"}
    first, second = sources["WRA_Ann0"].segments
    assert (first.start, first.end, second.start, second.end) == (20, 95, 120, 130)
    # The list's pixels are those of a 720 high picture; this one is 1080 high.
    assert first.pixels(1080, 1920) == (slice(62, 782), slice(459, 1179))
    assert second.pixels(1080, 1920) == (slice(0, 1080), slice(0, 1920))
    # What overlaps in time takes a pass of its own.
    assert [s.segments[0].start for s in (sources["WRA_Ann1"], sources["WRA_Ann1-1"])] == [33, 490]


def test_talking_head_and_celebv(tmp_path):
    videos = touch(tmp_path / "videos", "abc_0001.mp4", "raw.mp4")
    (tmp_path / "list.txt").write_text(
        "abc_0001,720,1280,3,9,10,20,110,120\nabc_0001,720,1280,10,12,0,0,64,64\ngone,1,1,0,1,0,0,1,1\n"
    )
    listing = ingest.find(videos, str(tmp_path / "list.txt"))
    (source,) = listing.sources
    assert source.person == "abc" and "CC BY 3.0" in source.licence and listing.missing[0][0] == "gone"
    assert [source.segments[0].holds(i, 0) for i in (2, 3, 9, 10)] == [False, True, True, False]
    assert source.segments[0].pixels(360, 640) == (slice(10, 60), slice(5, 55))
    box = {"top": 0.1, "bottom": 0.6, "left": 0.25, "right": 0.5}
    clip = {"ytb_id": "raw", "duration": {"start_sec": 1.5, "end_sec": 2}, "bbox": box}
    (tmp_path / "info.json").write_text(
        json.dumps({"clips": {"raw_0": clip, "raw_1": clip | {"duration": {"start_sec": 5, "end_sec": 6}}}})
    )
    (source,) = ingest.find(videos, str(tmp_path / "info.json")).sources
    assert [s.start for s in source.segments] == [1.5, 5] and source.segments[0].pixels(100, 200) == (
        slice(10, 60),
        slice(50, 100),
    )


@pytest.mark.parametrize(
    "name,text",
    [("list.txt", "nothing of the kind\n"), ("list.txt", "a,1,2,3,4,5,6,7,x\n"), ("info.json", "{}"), ("no.txt", "")],
)
def test_unreadable_lists_are_one_sentence(tmp_path, name, text):
    videos = touch(tmp_path / "videos", "a.mp4")
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="list"):
        ingest.find(videos, str(tmp_path / name))
