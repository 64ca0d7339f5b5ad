"""Pictures of people, label maps and masks, for photographs, films, samples and logs."""
import os

import cv2
import numpy as np

from annotations.skeleton import COCO_SKELETON

# OpenPose's colours of the 18 COCO parts, written here in RGB as they are published. A limb takes the colour of its
# second part.
PART_COLOURS = tuple((blue, green, red) for red, green, blue in (
    (255, 0, 85), (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
    (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (255, 0, 170), (170, 0, 255),
    (255, 0, 255), (85, 0, 255)))
# Ear to shoulder helps to tell people apart, but drawn it would only cover the face; OpenPose leaves it out as well.
HIDDEN_LIMBS = ((2, 16), (5, 17))

SUBPIXEL_BITS = 4  # of OpenCV's fixed-point drawing coordinates
FONT = cv2.FONT_HERSHEY_DUPLEX
WHITE = (255, 255, 255)
BLACK = (40, 40, 40)


def part_colours(skeleton):
    """A BGR colour for each part: OpenPose's for COCO's, else evenly around the colour circle."""
    if skeleton == COCO_SKELETON:
        return PART_COLOURS
    hues = np.arange(len(skeleton.parts)) * 180 / len(skeleton.parts)
    hsv = np.stack([hues, np.full(len(hues), 255), np.full(len(hues), 255)], axis=1).astype(np.uint8)
    return [tuple(colour) for colour in cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0].tolist()]


def draw_skeletons(image, keypoints, skeleton, opacity=0.8):
    """Draw people in OpenPose's colours, with strokes in proportion to each person's size: a new image.

    Args:
        image: uint8 (H, W, 3) BGR.
        keypoints: (people, parts, 2 or 3) of x, y(, score) in image pixels, NaN where absent; else ValueError.
        opacity: 0..1, how much of the photograph the strokes cover.
    """
    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.ndim != 3 or keypoints.shape[1] != len(skeleton.parts) or keypoints.shape[2] not in (2, 3):
        raise ValueError('keypoints have shape %s, not (people, %d, 2 or 3)' % (keypoints.shape, len(skeleton.parts)))
    # Far outside of the picture OpenCV's integer coordinates would overflow; such a point is of no use in it anyway.
    points = keypoints[:, :, :2]
    reach = 4 * max(image.shape[:2])
    present = (np.abs(np.where(np.isfinite(points), points, np.inf)) < reach).all(axis=2)
    drawn = image.copy()
    colours = part_colours(skeleton)
    hidden = HIDDEN_LIMBS if skeleton == COCO_SKELETON else ()
    for person, here in zip(points, present):
        if not here.any():
            continue
        # A fortieth of the person's size, within what the picture can show.
        short_edge = min(image.shape[:2])
        width = float(np.clip(np.hypot(*np.ptp(person[here], axis=0)) / 40, max(1.5, short_edge / 250),
                              max(2.5, short_edge / 55)))
        limbs = [(person[a], person[b], colours[b]) for a, b in skeleton.limbs
                 if here[a] and here[b] and (a, b) not in hidden]
        for start, end, _ in limbs:  # the dark rims of all limbs first, so that no rim cuts through a neighbour
            _fill_limb(drawn, start, end, width + max(1.0, width / 4), (0, 0, 0))
        for start, end, colour in limbs:
            _fill_limb(drawn, start, end, width, colour)
        for part in np.nonzero(here)[0]:
            _fill_circle(drawn, person[part], 0.62 * width + max(0.5, width / 8), (0, 0, 0))
            _fill_circle(drawn, person[part], 0.62 * width, colours[part])
    return cv2.addWeighted(drawn, opacity, image, 1 - opacity, 0)


def draw_sample(sample, skeleton):
    """The pictures of one sample: people, heatmap, PAFs and mask; a list of uint8 (H, W, 3) arrays."""
    text = os.path.splitext(os.path.basename(sample.name))[0].lstrip('0')
    if sample.augmentation is not None:
        a = sample.augmentation
        text += ': scale %.2f, %+.0f deg, %+.0f %+.0f px%s' % (
            a.scale, a.angle, a.offset_x, a.offset_y, ', flipped' if a.flip else '')
    pictures = [(draw_skeletons(sample.image, sample.joints, skeleton), text),
                (overlay_heatmap(sample.image, sample.heatmap), 'heatmaps'),
                (overlay_paf(sample.image, sample.paf), 'PAFs'),
                (shade_mask(sample.image, sample.mask), 'mask (hatched: not in the loss)')]
    pictures = [caption(picture, text) for picture, text in pictures]
    height = max(len(picture) for picture in pictures)  # a long text is smaller and has a lower strip
    return [cv2.copyMakeBorder(picture, 0, height - len(picture), 0, 0, cv2.BORDER_CONSTANT, value=WHITE)
            for picture in pictures]


def overlay_heatmap(image, heatmap, opacity=0.75):
    """Blend the heatmap of the most likely part in each cell over the image, from blue (unlikely) to red (certain).

    Args:
        image: uint8 (H, W, 3) BGR.
        heatmap: (h, w, parts + 1), the background in the last channel; values are clipped to 0..1.
        opacity: of a certain part, 0..1.
    """
    return overlay_channel(image, heatmap[:, :, :-1].max(axis=2), opacity)


def overlay_channel(image, channel, opacity=0.75):
    """Blend one map (h, w), as the background's, over the image as overlay_heatmap does."""
    heat = _grow(np.clip(channel, 0, 1), image)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_JET)
    return _blend(_faded(image), colours, opacity * np.sqrt(heat))


def overlay_paf(image, paf, opacity=0.7):
    """Blend PAFs over the image: direction as hue, magnitude as strength.

    To the right is red, down is yellow-green, to the left cyan, up violet (hue is the angle on the screen). Where
    several limbs cross, the strongest is shown.

    Args:
        image: uint8 (H, W, 3) BGR.
        paf: (h, w, 2 * limbs), limb k in channels 2k (x) and 2k + 1 (y).
        opacity: of a vector of length 1 or more, 0..1.
    """
    vectors = np.asarray(paf, np.float32).reshape(paf.shape[0], paf.shape[1], -1, 2)
    magnitudes = np.hypot(vectors[..., 0], vectors[..., 1])
    strongest = magnitudes.argmax(axis=2)[:, :, None]
    # The vectors are enlarged rather than the colours: hues have a seam at 360 degrees. Between two limbs of opposite
    # directions they cancel, and the overlay fades out.
    x, y = (_grow(np.take_along_axis(vectors[..., axis], strongest, axis=2)[:, :, 0], image) for axis in (0, 1))
    hue = np.rad2deg(np.arctan2(y, x)) % 360
    full = np.ones_like(hue)
    colours = cv2.cvtColor(np.dstack([hue, full, full]), cv2.COLOR_HSV2BGR) * 255
    return _blend(_faded(image), colours, opacity * np.minimum(np.hypot(x, y), 1))


def shade_mask(image, mask):
    """Darken and hatch in an image uint8 (H, W, 3) BGR what a mask (h, w, 1), 1 where the loss counts, leaves out."""
    ignored = 1 - np.clip(_grow(mask[:, :, 0], image), 0, 1)
    rows, columns = np.indices(ignored.shape)
    period = max(8, min(ignored.shape) // 24)
    stripes = (rows + columns) % period < period / 4
    shade = np.where(stripes[:, :, None], np.array([60, 60, 230]), np.array([0, 0, 0]))
    return _blend(image, shade, ignored * np.where(stripes, 0.85, 0.55))


def shrunk(image, scale):
    """An image at a scale of at most 1, with sides of at least a pixel."""
    width, height = (max(1, int(round(side * min(1, scale)))) for side in image.shape[1::-1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def caption(image, text):
    """An image uint8 (H, W, 3) BGR with a line of ASCII text on a white strip below, smaller where it would not fit."""
    width = image.shape[1]
    scale = float(np.clip(width / 640, 0.4, 1.5))
    scale *= min(1, 0.92 * width / max(1, cv2.getTextSize(text, FONT, scale, 1)[0][0]))
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, scale, 1)
    strip = np.full((int(text_height * 2.1) + 4, width, 3), WHITE, np.uint8)
    origin = (max(0, (width - text_width) // 2), (len(strip) + text_height) // 2)
    cv2.putText(strip, text, origin, FONT, scale, BLACK, 1, cv2.LINE_AA)
    return np.vstack([image, strip])


def contact_sheet(rows, margin=6):
    """Lay images out in rows and columns, centred in their places, with a margin (pixels) between and around them.

    rows: list of lists of uint8 (H, W, 3) images; sizes and lengths of rows may differ. Without any: ValueError.
    """
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError('a contact sheet needs at least one image')
    heights = [max(len(image) for image in row) for row in rows]
    widths = [max(row[column].shape[1] for row in rows if column < len(row))
              for column in range(max(len(row) for row in rows))]
    tops, lefts = (np.cumsum([margin] + [side + margin for side in sides]) for sides in (heights, widths))
    sheet = np.full((tops[-1], lefts[-1], 3), WHITE, np.uint8)
    for row, row_height, top in zip(rows, heights, tops):
        for image, column_width, left in zip(row, widths, lefts):
            height, width = image.shape[:2]
            y, x = top + (row_height - height) // 2, left + (column_width - width) // 2
            sheet[y:y + height, x:x + width] = image
    return sheet


def _fill_limb(image, start, end, width, colour):
    """Fill an ellipse from start to end, as OpenPose draws its limbs."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    along, across = (end - start) / 2, np.array([start[1] - end[1], end[0] - start[0]])
    across = across / max(np.hypot(*across), 1e-6) * width / 2
    outline = (start + end) / 2 + np.cos(angles)[:, None] * along + np.sin(angles)[:, None] * across
    cv2.fillConvexPoly(image, _fixed_point(outline), colour, cv2.LINE_AA, SUBPIXEL_BITS)


def _fill_circle(image, centre, radius, colour):
    x, y = _fixed_point(centre).tolist()
    cv2.circle(image, (x, y), int(round(radius * (1 << SUBPIXEL_BITS))), colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _fixed_point(points):
    return np.round(points * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _grow(cells, image):
    """Enlarge a map (h, w) to the image's size, bilinear."""
    return cv2.resize(np.asarray(cells, np.float32), (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)


def _faded(image):
    """The image with half its colour, a little darker: a ground on which an overlay stands out."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, 0.3, grey, 0.45, 0)


def _blend(image, colours, strength):
    """Mix two (H, W, 3) images; strength (H, W) is the share of the second, 0..1."""
    strength = strength[:, :, None]
    return np.clip(np.round(image * (1 - strength) + colours * strength), 0, 255).astype(np.uint8)
