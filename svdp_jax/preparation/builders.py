"""Face clips of HDTF and TalkingHead-1KH as `tensorflow-datasets`, with or without TensorFlow.

    import tensorflow_datasets as tfds
    from svdp_jax.preparation.builders import Hdtf

    builder = Hdtf(data_dir="datasets", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="hdtf"))
    source = builder.as_data_source("train")

Nothing is downloaded: `manual_dir` holds `list` (HDTF's folder of lists, TalkingHead-1KH's text file)
and `videos`. Cutting, following, gates and cropping are those of `svdp_jax.prepare`. Frames are
JPEG bytes, which need no TensorFlow; `decoded` turns an example's into pictures.
"""

from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from svdp_jax.preparation import crops, ingest, jobs, left, stages


class _FaceClips(tfds.core.GeneratorBasedBuilder):
    """Square crops of one face each, at `settings.size`; clips that a gate rejects are left out."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Clips as svdp_jax.prepare cuts them."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the dataset's own list(s) at `list` and the downloaded videos into `videos`."
    settings = jobs.Settings()

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        scalar = tfds.features.Tensor(shape=(), dtype=np.float32)
        features = {"name": text, "person": text, "licence": text, "fps": scalar, "frames": tfds.features.Sequence(text)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        listing = ingest.find([str(folder / "videos")], str(folder / "list"))
        return {"train": self._generate_examples(folder / "work", listing.sources)}

    def _generate_examples(self, work: Path, found: list[ingest.Source]):
        work.mkdir(exist_ok=True)
        given, _ = stages.given(work, self.settings, found)
        left.write_films(work, given.sources)
        for source in given.sources:
            for stage in ("faces", "crops"):
                (job,) = stages.STAGES[stage].jobs(given._replace(sources=[source]))
                if not jobs.done(job):
                    jobs.do(job, lambda frames: None)
            for clip in given.results.clips([source]):
                example = {"name": clip.name, "person": clip.person, "licence": clip.licence, "fps": np.float32(clip.fps)}
                yield clip.name, example | {"frames": list(crops.encoded(left.frames_of(work, clip)))}


class Hdtf(_FaceClips):
    """High-Definition Talking Face dataset (Zhang et al., CVPR 2021)."""


class TalkingHead1kh(_FaceClips):
    """TalkingHead-1KH (Wang et al., CVPR 2021)."""


def decoded(example: dict) -> np.ndarray:
    """The frames (f, size, size, 3) uint8 of an example."""
    read = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.stack([read(data) for data in example["frames"]])
