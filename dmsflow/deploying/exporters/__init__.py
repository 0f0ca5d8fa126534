"""Writers of model files: `lce` for Larq Compute Engine (.tflite), `onnx` and `onnx-int8` for ONNX.

Each file turns an integer graph into a model file, and says what is in such a file.

A file of this folder, or a user's own, offers

- `write(graph, path)`, which writes an `IntegerGraph` as a model file, whole or not at all: float32 pixels
  [1, H, W, C] in, logits [1, classes] out;
- `count_ops(path)`, the ops of a written file and how often each occurs;
- `FLOAT_CONV` and `PACKED_CONV`, what `count_ops` calls convolutions with float and with 1-bit weights;
- `layer_bytes(path)`, the bytes that the constants of each op of the integer graph take in a written file.

It may also have

- `REQUIRES`, the modules of extra packages that it needs: `("onnx",)`. `dmsflow doctor` names those that are
  missing. It must itself be importable without them;
- `CONVERTERS`, the values of `--converter` among which `write(graph, path, converter)` chooses, the usual
  one first;
- `GRANULARITY` (`profile.Granularity`), where its kernels handle channels in words and blocks;
- `write_float(network, widths, weights, mean, std, path)`, if it writes float32 networks too (`onnx-int8` writes nothing
  else, and has no `write`);
- `CALIBRATION_IMAGES`, how many training images, [N, H, W, C], `write_float` takes as one more argument;
- `PRECISION` ("int8"), if its `write_float` does not keep float32, and `MOST_CHANGED_PERCENT`, the images that may be
  in another class then.
"""
