"""Calls larq-compute-engine's own converter, in the environment that has it: nothing else imports TensorFlow.

    .witness/bin/python -I child.py FOLDER

turns each .npz of the folder, as `convert.py` writes them, into a .tflite beside it. It imports nothing of dmsflow.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def main(folder: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}  # TensorFlow reads them on import
    import larq_compute_engine
    import tensorflow

    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            module = _module(tensorflow, json.loads(str(arrays["program"])), dict(arrays))
        with tempfile.TemporaryDirectory(dir=folder) as saved:
            tensorflow.saved_model.save(module, saved)
            content = larq_compute_engine.convert_saved_model(saved)
        path.with_suffix(".tflite").write_bytes(content)


def _end_with_parent() -> None:
    """Standard input is a pipe that nobody writes to: it ends when the parent does, however that ends."""
    os.read(0, 1)  # sys.stdin has a lock, which Python would wait for at its end
    os._exit(1)


def _module(tf: Any, program: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Any:
    """A tf.Module that computes the program's steps; each tensor is named after the step's layer."""
    operations = _operations(tf)
    module = tf.Module()

    def call(pixels: Any) -> Any:
        values = [pixels]
        for number, step in enumerate(program["steps"]):
            constants = [arrays[f"{number}.{index}"].astype(np.float32) for index in range(step["constants"])]
            # The layer's name in the letters that TensorFlow knows; the slash lets a scope be entered again.
            with tf.name_scope(re.sub(r"^(?=[_-])|[^A-Za-z0-9_.-]", ".", step["layer"]) + "/"):
                inputs = [values[one] for one in step["inputs"]]
                values.append(operations[step["op"]](*inputs, *constants, **step["options"]))
        return values[-1]

    signature = [tf.TensorSpec(program["shape"], tf.float32, name="pixels")]
    module.call = tf.function(call, input_signature=signature, autograph=False)
    return module


def _operations(tf: Any) -> dict[str, Callable[..., Any]]:
    """What a step may be called. They are written as the converter's patterns want to see them."""
    return {
        "add": lambda x, y: x + y,
        "average_pool": lambda x, *, size, stride: tf.nn.avg_pool2d(x, size, stride, "VALID"),
        "concat": lambda *parts: tf.concat(parts, 3),
        "conv": lambda x, filters, *, stride: tf.nn.conv2d(x, filters, stride, "VALID"),
        "dense": lambda x, weight, bias: tf.matmul(tf.reshape(x, [1, -1]), weight, transpose_b=True) + bias,
        "depthwise_conv": lambda x, filters, *, stride: tf.nn.depthwise_conv2d(
            x, filters, [1, stride, stride, 1], "VALID"
        ),
        "floor": tf.floor,
        "hard_sigmoid": lambda x: tf.nn.relu6(x + 3.0) * (1 / 6),
        "max_pool": lambda x, *, kernel, stride: tf.nn.max_pool2d(x, kernel, stride, "VALID"),
        "maximum": tf.maximum,
        "multiply": lambda x, y: x * y,
        "pad": lambda x, *, amounts, fill: tf.pad(x, [[0, 0], amounts, amounts, [0, 0]], constant_values=fill),
        "prelu": lambda x, slope: tf.nn.relu(x) + -slope * tf.nn.relu(-x),
        "relu": tf.nn.relu,
        "relu6": tf.nn.relu6,
        "sigmoid": tf.sigmoid,
        "sign": lambda x: tf.sign(tf.sign(x) + 0.1),  # of 0, too
        "subtract": lambda x, y: x - y,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
