"""What is minimized: the difference between the maps of every stage and the labels (Cao et al., equation 5)."""
import tensorflow.compat.v1 as tf


def build_losses(stages, heatmap, paf, mask, batchsize):
    """The losses of all stages: l2_loss(mask * (prediction - label)) / batchsize (Cao et al., equation 5).

    Returns:
        dict of scalars: loss (all stages and branches), loss_ll (last stage), loss_ll_paf, loss_ll_heat, and
        loss_ll_background, the loss_ll of predicting an empty image.
    """
    def l2(prediction, label):
        return tf.nn.l2_loss(mask * (prediction - label)) / batchsize

    with tf.name_scope('losses'):
        per_stage = [(l2(stage_paf, paf), l2(stage_heat, heatmap)) for stage_paf, stage_heat in stages]
        loss_ll_paf, loss_ll_heat = per_stage[-1]
        background = tf.one_hot(heatmap.shape[-1] - 1, heatmap.shape[-1])
        return {'loss': tf.add_n([loss for pair in per_stage for loss in pair]),
                'loss_ll': loss_ll_paf + loss_ll_heat, 'loss_ll_paf': loss_ll_paf, 'loss_ll_heat': loss_ll_heat,
                'loss_ll_background': l2(0.0, paf) + l2(background, heatmap)}
