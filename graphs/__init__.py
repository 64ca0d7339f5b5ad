"""From a checkpoint to a graph for inference.

freeze.py: files, the inference graph, its weights. optimize.py: the passes and their proof; affine.py and separable.py
are passes of their own. predict.py: running a network. graphdef.py: what all of them need of a GraphDef.
"""
