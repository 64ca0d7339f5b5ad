"""From a checkpoint to a graph for inference.

freeze.py: files, the inference graph, its weights. allowed_ops.py: which graphs are run. optimize.py: the passes and
their proof; fold_batch_norm.py and separable.py are passes of their own. tflite.py: TensorFlow Lite files. graphdef.py:
what all of them need of a GraphDef. Nothing here runs a network: that is inference/.
"""
