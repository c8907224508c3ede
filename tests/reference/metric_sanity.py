"""python tests/reference/metric_sanity.py FOLDER

Damages toy clips in three strengths, and draws how the metric meant for each damage answers:
FOLDER/sanity.html and FOLDER/sanity.json. About half a minute on one core once compiled.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from damage import DAMAGES, curve, truth
from tqdm import tqdm

from svdp_jax.evaluation import report

PEOPLE = 3

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
clips = {f"person {seed}": truth(seed) for seed in range(PEOPLE)}
curves = {name: {who: curve(clip, name) for who, clip in clips.items()} for name in tqdm(DAMAGES, unit="damage")}
figures = "".join(
    report.plot(f"{DAMAGES[name].metric} at {name} of {', '.join(map(str, DAMAGES[name].strengths))}", lines)
    for name, lines in curves.items()
)
(folder / "sanity.json").write_text(json.dumps(curves, indent=1))
(folder / "sanity.html").write_text(f"<!doctype html><meta charset=utf-8><style>{report.STYLE}</style>{figures}")
