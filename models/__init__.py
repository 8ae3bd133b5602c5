"""Makes and describes the `.onnx`: the network, its training, export, and the model packages."""
