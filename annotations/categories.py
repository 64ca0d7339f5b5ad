"""Which categories of an annotation file are meant, and their keypoints."""
import collections
import functools

from pose_errors import UserError

from .common_keypoints import merge_skeletons
from .skeleton import COCO_SKELETON, skeleton_of_category

PERSON, ALL = 'person', 'all'  # --category=all is every one with keypoints


class Choice(collections.namedtuple('Choice', 'skeleton id by_key masked')):
    """The chosen categories.

    Attributes:
        skeleton: the annotations.skeleton.Skeleton of all of them.  id: of the first one, as it is in the file.
        by_key: {key of a category's id: its Skeleton}, or None where any annotation will do.
        masked: keys of those that look like them, which are left out of the loss.
    """
    __slots__ = ()

    @property
    def skeletons(self):
        return set(self.by_key.values()) if self.by_key else {self.skeleton}

    def takes(self, annotation):
        """Whether an annotation, a dict, is of these categories or masked."""
        if self.by_key is None or 'category_id' not in annotation:
            return True
        own_key = key(annotation['category_id'])
        return own_key in self.by_key or own_key in self.masked

    def skeleton_of(self, annotation):
        own = self.by_key or {}
        return own.get(key(annotation.get('category_id')), next(iter(own.values()), self.skeleton))


def choose_category(content, annotation_file, name=None):
    """The Choice from the content of a COCO annotation file.

    name: of a category; None for the only one with keypoints, or `person`; `all` for all that have keypoints, whose
        keypoints meet by name.
    Raises UserError when there is none of that name, or there are several with keypoints and nothing to tell which.
    """
    categories = [entry for entry in as_list(content.get('categories')) if isinstance(entry, dict)]
    with_keypoints = [entry for entry in categories if as_list(entry.get('keypoints'))]
    if name == ALL and not any(entry.get('name') == ALL for entry in categories):
        chosen = with_keypoints
    elif name is not None:
        # Roboflow writes a parent of the same name, without keypoints.
        chosen = [entry for entry in with_keypoints + categories if entry.get('name') == name][:1]
        if not chosen:
            raise UserError('--category=%s is not in %s; it has %s' % (name, annotation_file, _names_of(categories)))
    else:
        people = [entry for entry in with_keypoints or categories if entry.get('name') == PERSON]
        if len(with_keypoints) > 1 and not people:
            raise UserError('%s has several categories with keypoints: choose one with --category=NAME of %s, or all '
                            'of them, whose keypoints meet by name, with --category=all'
                            % (annotation_file, _names_of(with_keypoints)))
        chosen = (people or with_keypoints)[:1]
    if not chosen:  # files of people alone need not say so
        keys = {key(entry.get('id')): COCO_SKELETON for entry in categories} if len(categories) == 1 else None
        return Choice(COCO_SKELETON, categories[0].get('id', 1) if keys else 1, keys, set())
    first = chosen[0]
    if not as_list(first.get('keypoints')):
        if name not in (None, PERSON):
            raise UserError('the category %s of %s has no keypoints; give another with --category=NAME'
                            % (name, annotation_file))
        return Choice(COCO_SKELETON, first.get('id', 1), {key(first.get('id')): COCO_SKELETON}, set())
    by_key = {key(entry.get('id')): skeleton_of_category(entry, annotation_file) for entry in chosen}
    # Where a category is asked for, others with keypoints are much like it: they are neither found nor background.
    masked = {key(entry.get('id')) for entry in with_keypoints} - set(by_key) if name is not None else set()
    skeleton = functools.reduce(lambda one, other: merge_skeletons(one, other, '--category=all: %s' % other.name),
                                by_key.values())
    return Choice(skeleton, first.get('id', 1), by_key, masked)


def key(value):
    """What makes ids equal, whatever type a tool gives them: 7, 7.0 and '7' are one."""
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value)


def as_list(value):
    return value if isinstance(value, list) else []


def _names_of(categories):
    return ', '.join('%.40s' % entry.get('name') for entry in categories[:10]) or 'no categories'
