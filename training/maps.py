"""Batches inside the graph: cut into parts for towers, and the label maps written out on a tower's own device."""
import tensorflow.compat.v1 as tf

from pose_batches import FIXED_POINT, Batch, mask_steps


def split_batch(batch, parts, skeleton):
    """Cut a Batch of tensors into `parts` Batches of as many samples each, on the current device.

    The batch size must be known, and a multiple of parts.
    """
    if parts == 1:
        return [Batch(*batch)]
    batch = Batch(*batch)
    with tf.name_scope('split'):
        images, masks = tf.split(batch.image, parts), tf.split(batch.mask, parts)
        heatmaps = _split_items(batch.heatmap_positions, batch.heatmap_values, parts,
                                masks[0].shape.num_elements() * skeleton.heatmap_channels)
        pafs = _split_items(batch.paf_positions, batch.paf_values, parts,
                            masks[0].shape.num_elements() * len(skeleton.limbs))
        return [Batch(image, mask, *heatmap, *paf) for image, mask, heatmap, paf in zip(images, masks, heatmaps, pafs)]


def _split_items(positions, values, parts, items):
    """[(positions, values)] of each part, of which each has `items` positions in all."""
    ends = tf.searchsorted(positions, [items * part for part in range(parts + 1)])
    return [(positions[ends[k]:ends[k + 1]] - items * k, values[ends[k]:ends[k + 1]]) for k in range(parts)]


def dense_maps(batch, skeleton):
    """A Batch of tensors -> (image uint8, heatmap, paf and mask float32), bit by bit as pose_batches.decode_batch.

    The shapes of image and mask but for the number of samples must be known.
    """
    with tf.name_scope('maps'):
        _, height, width, _ = batch.mask.shape.as_list()
        cells = tf.shape(batch.mask)[0] * (height * width)
        empty = tf.tile(tf.one_hot(skeleton.background, skeleton.heatmap_channels), [cells])
        heatmap = tf.tensor_scatter_nd_update(empty, batch.heatmap_positions[:, None], _decode(batch.heatmap_values))
        paf = tf.scatter_nd(batch.paf_positions[:, None], _decode(batch.paf_values),
                            [cells * len(skeleton.limbs), 2])
        samples = batch.mask.shape.as_list()[0]
        heatmap, paf = (tf.reshape(maps, [samples or -1, height, width, channels]) for maps, channels in
                        ((heatmap, skeleton.heatmap_channels), (paf, skeleton.paf_channels)))
        return batch.image, heatmap, paf, tf.cast(batch.mask, tf.float32) / mask_steps(batch.image, batch.mask)


def _decode(values):
    return (tf.cast(values, tf.float32) - FIXED_POINT) * (1 / FIXED_POINT)
