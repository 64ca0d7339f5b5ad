"""COCO annotation files for tests, with people on a diagonal and empty files in place of the images."""
import json


def keypoints(x=50, y=60, visible=17):
    """17 keypoints on a diagonal from (x, y), of which the first `visible` are labelled."""
    return [value for k in range(17) for value in ((x + 2 * k, y + 3 * k, 2) if k < visible else (0, 0, 0))]


def person(number, image_id=1, **fields):
    entry = {'id': number, 'image_id': image_id, 'category_id': 1, 'iscrowd': 0, 'num_keypoints': 17,
             'keypoints': keypoints(visible=17 if fields.get('num_keypoints') != 0 else 0),
             'bbox': [40, 50, 60, 80], 'area': 4000, 'segmentation': []}
    entry.update(fields)
    return entry


def image_entry(number, name='a.jpg', width=320, height=240):
    return {'id': number, 'file_name': name, 'width': width, 'height': height}


def write_split(folder, annotations, images=None, names=None, split='train2017'):
    """A COCO file with one image of 320x240 unless told otherwise, and empty files in place of the images."""
    images = images or [image_entry(1)]
    file = folder / 'annotations' / ('person_keypoints_%s.json' % split)
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(exist_ok=True)
    file.write_text(json.dumps({'images': images, 'annotations': annotations,
                                'categories': [{'id': 1, 'name': 'person'}]}))
    for name in [image.get('file_name') for image in images] if names is None else names:
        if isinstance(name, str) and name.endswith('.jpg'):
            (folder / split / name).parent.mkdir(exist_ok=True)
            (folder / split / name).touch()
    return str(file), str(folder / split)
