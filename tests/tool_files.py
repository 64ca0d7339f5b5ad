"""Annotation files in the shapes that labelling tools document, of one set of keypoints, with their image folders.

    write(folder, images, people)   images: [(name, width, height, bytes)], people: [(image, keypoints (5, 3), box)]

Each returns the split to ask for with --datapath=folder. The second category that most files have is a dog's, without
keypoints, on the first image.
"""
import json

from pycocotools import mask as coco_mask

KEYPOINTS = ('nose', 'left_shoulder', 'right_shoulder', 'left_hip', 'right_hip')
LIMBS = [[1, 2], [1, 3], [2, 4], [3, 5], [4, 5]]
DOG = [10, 10, 60, 60]


def from_coco(content):
    """Changes COCO's content into a five-keypoint file as tools write them: ids as text, a dog beside the dancers, no
    counts and areas, every other outline as run lengths."""
    rows = [content['categories'][0]['keypoints'].index(name) for name in KEYPOINTS]
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    content['categories'] = [category(id='7', name='dancer'), {'id': '8', 'name': 'dog'}]
    for image in content['images']:
        image['id'] = 'image %d' % image['id']
    for number, annotation in enumerate(content['annotations']):
        size = sizes[annotation['image_id']]
        points = annotation['keypoints']
        if number % 2 and isinstance(annotation['segmentation'], list):
            encoded = coco_mask.merge(coco_mask.frPyObjects(annotation['segmentation'], *size))
            annotation['segmentation'] = {'size': list(size), 'counts': encoded['counts'].decode()}
        annotation.update(id='a%d' % number, image_id='image %d' % annotation['image_id'], category_id='7',
                          keypoints=flat(points[3 * row:3 * row + 3] for row in rows))
        del annotation['num_keypoints'], annotation['area']
    content['annotations'].append(dict(content['annotations'][0], id='dog', category_id='8'))


def category(**fields):
    return dict(fields, keypoints=list(KEYPOINTS), skeleton=LIMBS)


def flat(keypoints):
    return [number for point in keypoints for number in point]


def outline(box):
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def count(keypoints):
    return sum(v > 0 for _, _, v in keypoints)


def put(folder, name, image_folder, images, added, **content):
    """Write the annotation file, and the images into the folder that each tool chooses.

    added: what a tool's entry of image k has beside name and size, as a function of k.
    """
    image_folder.mkdir(parents=True, exist_ok=True)
    content['images'] = []
    for k, (image, width, height, data) in enumerate(images):
        (image_folder / image).write_bytes(data)
        content['images'].append(dict({'file_name': image, 'width': width, 'height': height}, **added(k)))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def write_coco(folder, images, people):
    """COCO's own form: polygons, areas, counts; crowds as run lengths."""
    put(folder, 'annotations/person_keypoints_train2017.json', folder / 'train2017', images,
        lambda k: {'license': 4, 'coco_url': '', 'flickr_url': '', 'date_captured': '2013-11-14 17:02:52',
                   'id': 100 + k},
        info={'description': 'COCO 2017 Dataset', 'year': 2017}, licenses=[],
        annotations=[{'segmentation': [outline(box)], 'num_keypoints': count(keypoints), 'area': box[2] * box[3],
                      'iscrowd': 0, 'keypoints': flat(keypoints), 'image_id': 100 + image, 'bbox': list(box),
                      'category_id': 1, 'id': 9000 + k} for k, (image, keypoints, box) in enumerate(people)],
        categories=[category(supercategory='dancer', id=1, name='dancer')])
    return 'train2017'


def write_cvat(folder, images, people):
    """annotations/person_keypoints_default.json and images/default; no outlines; points outside keep their x and y."""
    dog = {'id': 99, 'image_id': 1, 'category_id': 2, 'segmentation': [outline(DOG)], 'area': 3600.0, 'bbox': DOG,
           'iscrowd': 0, 'attributes': {'occluded': False}}
    put(folder, 'annotations/person_keypoints_default.json', folder / 'images' / 'default', images,
        lambda k: {'id': 1 + k, 'license': 0, 'flickr_url': '', 'coco_url': '', 'date_captured': 0},
        licenses=[{'name': '', 'id': 0, 'url': ''}],
        info={'contributor': '', 'date_created': '', 'description': '', 'url': '', 'version': '', 'year': ''},
        categories=[category(id=1, name='dancer', supercategory=''),
                    {'id': 2, 'name': 'dog', 'supercategory': '', 'keypoints': [], 'skeleton': []}],
        annotations=[{'id': k, 'image_id': 1 + image, 'category_id': 1, 'segmentation': [], 'area': box[2] * box[3],
                      'bbox': list(box), 'iscrowd': 0, 'attributes': {'occluded': False, 'keyframe': True},
                      'keypoints': flat((x, y, v) if v else (1.5, 2.5, 0) for x, y, v in keypoints),
                      'num_keypoints': count(keypoints)}
                     for k, (image, keypoints, box) in enumerate(people, 1)] + [dog])
    return 'default'


def write_label_studio(folder, images, people, limbs=()):
    """result.json beside images/, which file names start with; all keypoints in one category, without limbs; ids from
    0, no areas, whole numbers, boxes as tight as the points."""
    def box_of(keypoints):
        xs, ys = ([point[axis] for point in keypoints if point[2]] for axis in (0, 1))
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    put(folder, 'result.json', folder / 'images', images, lambda k: {'id': k, 'file_name': 'images/' + images[k][0]},
        categories=[{'id': 0, 'name': 'dog'},
                    dict(category(id=1, name='default', supercategory='default'), skeleton=list(limbs))],
        annotations=[{'id': 0, 'image_id': 0, 'category_id': 0, 'segmentation': [], 'bbox': DOG, 'ignore': 0,
                      'iscrowd': 0, 'area': 3600}] + [
            {'id': k, 'image_id': image, 'category_id': 1, 'keypoints': flat(keypoints), 'iscrowd': 0,
             'num_keypoints': count(keypoints), 'bbox': box_of(keypoints)}
            for k, (image, keypoints, _) in enumerate(people, 1)],
        info={'year': 2026, 'version': '1.0', 'description': '', 'contributor': 'Label Studio', 'url': '',
              'date_created': '2026-01-01 00:00:00'})
    return 'result.json'


def write_coco_annotator(folder, images, people):
    """An export beside the photographs: where only keypoints were set, area and box are 0; booleans; colours."""
    def entry(number, image, category_id, **fields):
        return dict({'id': number, 'image_id': 1 + image, 'category_id': category_id, 'dataset_id': 3,
                     'segmentation': [], 'area': 0, 'bbox': [0, 0, 0, 0], 'iscrowd': False, 'isbbox': False,
                     'creator': 'admin', 'width': images[image][1], 'height': images[image][2], 'color': '#4b5df1',
                     'metadata': {}, 'milliseconds': 5000, 'events': []}, **fields)
    put(folder, 'dancers.json', folder, images,
        lambda k: {'id': 1 + k, 'dataset_id': 3, 'category_ids': [], 'path': '/datasets/dancers/' + images[k][0],
                   'annotated': True, 'annotating': [], 'num_annotations': 1, 'metadata': {}, 'milliseconds': 9000,
                   'events': [], 'regenerate_thumbnail': False, 'is_modified': False},
        categories=[category(id=1, name='dancer', supercategory='', color='#b8d7a3', metadata={}, creator='admin',
                             keypoint_colors=['#bf5c4d'] * 5),
                    {'id': 2, 'name': 'dog', 'supercategory': '', 'color': '#00ff00', 'metadata': {}}],
        annotations=[entry(k, image, 1, keypoints=flat(keypoints), num_keypoints=count(keypoints))
                     for k, (image, keypoints, _) in enumerate(people, 1)]
        + [entry(77, 0, 2, segmentation=[outline(DOG)], area=3600, bbox=[float(side) for side in DOG], isbbox=True)])
    return 'dancers.json'


def write_roboflow(folder, images, people):
    """train/_annotations.coco.json among its images; ids from 0, a first category that groups the others, no counts."""
    put(folder, 'train/_annotations.coco.json', folder / 'train', images,
        lambda k: {'id': k, 'license': 1, 'date_captured': '2024-09-10T07:12:44+00:00',
                   'extra': {'name': images[k][0]}},
        info={'year': '2024', 'version': '1', 'description': 'Exported from roboflow.com'},
        licenses=[{'id': 1, 'url': 'https://creativecommons.org/licenses/by/4.0/', 'name': 'CC BY 4.0'}],
        categories=[{'id': 0, 'name': 'dancers-Qg7R', 'supercategory': 'none'},
                    category(id=1, name='dancer', supercategory='dancers-Qg7R')],
        annotations=[{'id': k, 'image_id': image, 'category_id': 1, 'bbox': list(box), 'area': box[2] * box[3],
                      'segmentation': [], 'iscrowd': 0, 'keypoints': flat(keypoints)}
                     for k, (image, keypoints, box) in enumerate(people)])
    return 'train/_annotations.coco.json'
