"""From a checkpoint to a graph for inference: freezing, the passes, faster separable layers."""
