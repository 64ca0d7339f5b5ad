"""Data sets that label runners: six of COCO's keypoints under other names, a neck and a head top."""
import json

import cv2

import annotation_files
from annotations.skeleton import skeleton_of_category

RUNNER = ('r_ankle', 'r_knee', 'r_hip', 'l_hip', 'l_knee', 'l_ankle', 'neck', 'head_top')
RUNNER_LIMBS = [[1, 2], [2, 3], [3, 7], [7, 4], [4, 5], [5, 6], [7, 8]]
RUNNER_CATEGORY = {'id': 1, 'name': 'runner', 'keypoints': list(RUNNER), 'skeleton': RUNNER_LIMBS}


def runner():
    return skeleton_of_category(RUNNER_CATEGORY, 'the file')


def runners(folder, people=1, split='train2017', images=None):
    """A data set of people with these keypoints; as many on the first image as `people`."""
    points = [value for k in range(8) for value in (60 + 5 * k, 70 + 6 * k, 2)]
    file, images = annotation_files.write_split(folder, [
        annotation_files.person(k + 1, num_keypoints=8, keypoints=points) for k in range(people)], images, split=split)
    content = json.loads(open(file).read())
    content['categories'] = [RUNNER_CATEGORY]
    with open(file, 'w') as written:
        json.dump(content, written)
    return file, images


def runners_like(data, folder):
    """The same with an image of a real data set, so that it can be trained on. Returns the folder."""
    runners(folder)
    image = cv2.imread(str(sorted((data / 'train2017').glob('*.jpg'))[0]))
    cv2.imwrite(str(folder / 'train2017' / 'a.jpg'), cv2.resize(image, (320, 240)))
    return folder
