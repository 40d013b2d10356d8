"""Runs train.run on up to eight fake devices; started by test_resume.py. Usage: devices_child.py
<JSON list of runs>.

Each run is {"workdir": ..., "config": <config.json text>, "steps": ..., "data": ..., "fsdp": ...},
on the first data * fsdp devices; prints the outcomes as the last line.
"""

import io
import json
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from configs import base
from lambdanet.config import from_json

outcomes = []
for job in json.loads(sys.argv[1]):
    config = from_json(job["config"], base.get_config())
    config.mesh.data, config.mesh.fsdp, config.mesh.fsdp_min_size = job["data"], job["fsdp"], 64
    config.train.steps = job["steps"]
    config.data.eval_split = config.data.test_split = config.train.keep_best = (
        ""  # evaluation is not what is compared
    )
    devices = jax.devices()[: job["data"] * job["fsdp"]]
    outcomes.append(train.run(config, job["workdir"], devices=devices, stream=io.StringIO()))
print(json.dumps(outcomes))
