"""The messages of the wire beside the arrays: which kinds there are, what each says, and how long it may be.

Each is a msgpack map with `version`, `type` and the fields of its kind, no more and no less. Whoever reads one knows
which kinds the other side may send: everything else, also a right field with a value out of range, is a BadMessage.
What comes from workers is checked cheaply before it is read: it is short, and a map without lists or maps in it.
"""
import msgpack
import msgpack.fallback

VERSION = 4
MAX_CREDIT = 16  # batches that one message asks for, and that are on the way from one worker
MAX_NUMBER = 1 << 40  # of a batch: its samples' positions stay far below 64 bits
MAX_SAMPLES = 1 << 30
MAX_NAME = 100  # characters
DIGEST_LENGTH = 32
MAX_REASON = 500  # characters
MAX_HEADER = 16384  # bytes, of the longest kind: a welcome with a skeleton
MAX_GREETING = 512  # bytes, of what a worker says in words
MAX_FIELDS = 4
CONTAINERS = frozenset(range(0x80, 0xa0)) | frozenset(range(0xdc, 0xe0))  # first bytes of msgpack's maps and lists


class BadMessage(Exception):
    """A message that breaks the rules of the wire; the text says which."""


class OtherVersion(BadMessage):
    """A message of another version of the wire."""

    def __init__(self, header):
        super().__init__('version %d of the wire, not %d' % (header['version'], VERSION))
        self.header = header


def is_name(value):
    return type(value) is str and 0 < len(value) <= MAX_NAME and value.isprintable()


def is_count(value):
    return type(value) is int and 0 < value <= MAX_SAMPLES


def is_digest(value):
    return type(value) is str and len(value) == DIGEST_LENGTH and value.isalnum()


def is_map(value):
    return type(value) is dict


def is_reason(value):
    return type(value) is str and len(value) <= MAX_REASON


def is_request(value):
    """Whether it is a list of the batches that a trainer may ask for at once."""
    return (type(value) is list and 0 < len(value) <= MAX_CREDIT
            and all(type(number) is int and 0 <= number < MAX_NUMBER for number in value))


# {kind: {field: what its value must be}}; batches are apart, see wire.check_frames.
FROM_WORKER = {'hello': {'name': is_name}, 'ready': {'samples': is_count, 'data': is_digest}, 'pong': {},
               'bye': {}}
FROM_TRAINER = {'welcome': {'settings': is_map}, 'credit': {'batches': is_request}, 'ping': {}, 'end': {},
                'refused': {'reason': is_reason}}


def pack(kind, **fields):
    """The bytes of a message of this kind."""
    return msgpack.packb(dict(fields, version=VERSION, type=kind))


def unpack_from_worker(data):
    """A worker's header as a dict of str -> value. Raises BadMessage, OtherVersion."""
    if len(data) > MAX_GREETING:
        raise BadMessage('a header of %d bytes' % len(data))
    return _checked(_unpack_flat(bytes(data)), FROM_WORKER)


def unpack_from_trainer(data):
    """A trainer's header as a dict of str -> value. Raises BadMessage, OtherVersion."""
    if len(data) > MAX_HEADER:
        raise BadMessage('a header of %d bytes' % len(data))
    try:
        # Not the compiled unpacker: that of msgpack 1.0.5 (Python 3.7) never frees unfinished nested arrays.
        header = msgpack.fallback.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack documents ValueError, but passes on more than that
        raise _not_msgpack(error)
    return _checked(header, FROM_TRAINER)


def _unpack_flat(data):
    """A map of few fields, none of which is a list or a map: to unpack it takes no longer than an honest message."""
    reader = msgpack.fallback.Unpacker(raw=False, max_buffer_size=MAX_GREETING, max_map_len=MAX_FIELDS)
    try:
        reader.feed(data)
        header = {}
        for _ in range(reader.read_map_header()):
            name = _next_value(reader, data)
            header[name] = _next_value(reader, data)
        if reader.tell() != len(data):
            raise BadMessage('a header with more behind it')
    except BadMessage:
        raise
    except Exception as error:
        raise _not_msgpack(error)
    return header


def _next_value(reader, data):
    if data[reader.tell()] in CONTAINERS:
        raise BadMessage('a header with a list or a map in it')
    return reader.unpack()


def _not_msgpack(error):
    return BadMessage('a header that is not msgpack (%s)' % type(error).__name__)


def _checked(header, kinds):
    if type(header) is not dict or type(header.get('version')) is not int or type(header.get('type')) is not str:
        raise BadMessage('a header without version and type')
    if header['version'] != VERSION:
        raise OtherVersion(header)
    kind = header['type']
    fields = kinds.get(kind)
    if fields is None:
        raise BadMessage('%.20r, which is not to be said here' % kind)
    if set(header) != {'version', 'type'} | set(fields):
        raise BadMessage('%r with wrong field names' % kind)
    for name, is_right in fields.items():
        if not is_right(header[name]):
            raise BadMessage('%r with %s=%.50r' % (kind, name, header[name]))
    return header
