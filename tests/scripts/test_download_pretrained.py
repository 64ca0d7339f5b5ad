"""scripts/download_pretrained.sh against a local HTTP server that can resume, break off and answer with errors."""
import concurrent.futures
import hashlib
import io
import os
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from conftest import assert_user_error, reference_data, run_bash

NPY = 'openpose_coco.npy'
TAR = 'mobilenet_v1_0.75_224_2017_06_14.tar.gz'
CAFFEMODEL = 'pose_iter_440000.caffemodel'
CHECKPOINT = 'mobilenet_v1_0.75_224.ckpt'


class Handler(BaseHTTPRequestHandler):
    """Serves server.files {name, or folder/name: bytes}; breaks off after server.limit bytes, and after a third of what
    is in the folder cut/; server.ranges: whether it can resume."""

    def do_GET(self):
        content = self.server.files.get(self.path.lstrip('/'), self.server.files.get(os.path.basename(self.path)))
        if content is None:
            return self.send_error(404)
        start = re.match(r'bytes=(\d+)-$', self.headers.get('Range', ''))
        start = int(start.group(1)) if start and self.server.ranges else 0
        self.server.requests.append((os.path.basename(self.path), start))
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(content) - start))
        if start:
            self.send_header('Content-Range', 'bytes %d-%d/%d' % (start, len(content) - 1, len(content)))
        self.end_headers()
        limit = len(content) // 3 if '/cut/' in self.path else self.server.limit
        self.wfile.write(content[start:] if limit is None else content[start:start + limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = HTTPServer(('127.0.0.1', 0), Handler)
    npy, tar = io.BytesIO(), io.BytesIO()
    np.save(npy, np.random.RandomState(0).bytes(200000))
    with tarfile.open(fileobj=tar, mode='w:gz') as archive:
        for suffix in ('.index', '.data-00000-of-00001', '.meta'):
            member = tarfile.TarInfo('./' + CHECKPOINT + suffix)
            content = np.random.RandomState(1).bytes(50000)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    server.files = {NPY: npy.getvalue(), TAR: tar.getvalue()}
    server.requests, server.limit, server.ranges = [], None, True
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def download(server, tmp_path):
    """Runs the script; the files it left behind are download.files(). before: addresses that are tried first."""
    def run(*args, before='', code=0):
        result = run_bash('scripts/download_pretrained.sh', '--dir=%s' % tmp_path, *args, no_proxy='*',
                          PRETRAINED_URL='%shttp://127.0.0.1:%d/models' % (before, server.server_port))
        assert result.returncode == code, result.stderr
        return result
    run.files = lambda: {str(path.relative_to(tmp_path)): path.read_bytes()
                         for path in tmp_path.rglob('*') if path.is_file()}
    return run


def test_npy(server, download):
    result = download('openpose_coco')
    assert download.files() == {'numpy/' + NPY: server.files[NPY]}
    assert hashlib.sha256(server.files[NPY]).hexdigest() in result.stdout
    download('openpose_coco')
    assert len(server.requests) == 1, 'what is there is not fetched again'


@pytest.mark.parametrize('name', ('mobilenet_thin', 'mobilenet_v1_0.75'))
def test_archive_is_unpacked_to_where_training_looks(download, name):
    download(name)
    folder = 'pretrained/mobilenet_v1_0.75_224_2017_06_14/'
    assert set(download.files()) == {folder + CHECKPOINT + suffix
                                     for suffix in ('.index', '.data-00000-of-00001', '.meta')}


@pytest.mark.parametrize('can_resume', (True, False))
def test_interrupted_download(server, download, can_resume):
    server.limit = 120000
    assert_user_error(download('openpose_coco', code=2), NPY, 'resume')
    assert download.files() == {'numpy/%s.part' % NPY: server.files[NPY][:120000]}
    server.limit, server.ranges = None, can_resume
    download('openpose_coco')
    assert download.files() == {'numpy/' + NPY: server.files[NPY]}
    if can_resume:
        assert server.requests == [(NPY, 0), (NPY, 120000)]


def test_interrupted_before_the_rename(server, download, tmp_path):
    (tmp_path / 'numpy').mkdir()
    (tmp_path / 'numpy' / (NPY + '.part')).write_bytes(server.files[NPY])
    download('openpose_coco')
    assert download.files() == {'numpy/' + NPY: server.files[NPY]}


def test_checksum(server, download):
    right = hashlib.sha256(server.files[NPY]).hexdigest()
    wrong = right[:-1] + ('0' if right[-1] != '0' else '1')
    assert_user_error(download('openpose_coco', '--sha256=' + wrong, code=2), right, wrong, NPY)
    assert download.files() == {}
    assert 'as expected' in download('openpose_coco', '--sha256=' + right.upper()).stdout


def test_damaged_files_are_not_kept(server, download):
    server.files[TAR] = server.files[TAR][:1000]
    server.files[NPY] = b'<html>this file has moved</html>'
    for name, file in (('mobilenet', TAR), ('openpose_coco', NPY)):
        assert_user_error(download(name, code=2), file)
    assert_user_error(download('vgg', code=2), 'vgg_19_2016_08_28.tar.gz', 'PRETRAINED_URL')  # which is not there
    assert download.files() == {}


def test_all(server, download):
    """One archive of the right kind stands for each of the table's."""
    for name in ('mobilenet_v1_0.50_224_2017_06_14.tar.gz', 'mobilenet_v1_1.0_224_2017_06_14.tar.gz',
                 'vgg_19_2016_08_28.tar.gz', *('mobilenet_v2_%s_224.tgz' % width for width in (0.5, 0.75, '1.0', 1.4))):
        server.files[name] = server.files[TAR]
    graph = (reference_data('published') / 'mobilenet_v2_small.pb').read_bytes()
    for name in ('mobilenet_thin', 'mobilenet_v2_small', 'mobilenet_v2_large', 'cmu'):
        server.files[name + '.pb'] = graph
    server.files[CAFFEMODEL] = b'not the published file'
    assert_user_error(download('all', code=2), CAFFEMODEL, '22 bytes, not 209274056')
    assert len(download.files()) == 8 * 3 + 4 + 1 and len(server.requests) == 14
    assert download.files()['published/mobilenet_v2_small.pb'] == graph


def test_published_graphs(server, download):
    """A page in place of a graph is refused, and so is another graph where the published one is known."""
    server.files['mobilenet_thin.pb'] = b'<html>this file has moved</html>'
    server.files['mobilenet_v2_small.pb'] = b'\n' + bytes(2096018)
    assert_user_error(download('published_thin', code=2), 'mobilenet_thin.pb is not a graph')
    assert_user_error(download('published_v2_small', code=2), 'SHA-256', 'damaged or changed')
    assert download.files() == {}


def test_the_authors_weights_are_checked(server, download):
    """Size and SHA-256 of the published file are known: what else a mirror has is kept only if its hash is given."""
    server.files[CAFFEMODEL] = np.random.RandomState(0).bytes(300000)
    server.limit = 100000
    assert_user_error(download('cmu', code=2), CAFFEMODEL, 'resume')
    server.limit = None
    assert_user_error(download('cmu', code=2), '300000 bytes, not 209274056')
    assert server.requests == [(CAFFEMODEL, 0), (CAFFEMODEL, 100000)] and download.files() == {}
    right = hashlib.sha256(server.files[CAFFEMODEL]).hexdigest()
    download('cmu', '--sha256=' + right)
    assert download.files() == {'pretrained/' + CAFFEMODEL: server.files[CAFFEMODEL]}


@pytest.mark.parametrize('first', ['http://127.0.0.1:9/none', 'http://127.0.0.1:%d/page', 'http://127.0.0.1:%d/cut'])
def test_the_next_address_is_tried(first, server, download):
    """After one that lacks the file, has a page in its place, or breaks off in the middle of another file."""
    server.files.update({'page/' + NPY: b'<html>this file has moved</html>', 'cut/' + NPY: bytes(100000)})
    download('openpose_coco', before=(first % server.server_port if '%d' in first else first) + ',')
    assert download.files() == {'numpy/' + NPY: server.files[NPY]}


def test_bad_usage(tmp_path, monkeypatch):
    def run(*args):
        return run_bash('scripts/download_pretrained.sh', *args)
    monkeypatch.delenv('PRETRAINED_URL', raising=False)
    assert_user_error(run(), 'usage')
    assert_user_error(run('openpos'), 'openpos', 'cmu', 'all')
    assert_user_error(run('cmu', '--directory=x'), '--directory=x')
    result = run('openpose_coco', '--dir=%s' % tmp_path)
    assert_user_error(result, 'no lasting public address', tmp_path / 'numpy' / NPY)
    assert run('--help').returncode == 0


def test_several_downloads_at_once(server, download):
    """The others wait for the first and find its file; one of them alone fetches it."""
    server.files[NPY] += bytes(3000000)
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        list(executor.map(download, ['openpose_coco'] * 3))
    assert download.files() == {'numpy/' + NPY: server.files[NPY]} and len(server.requests) == 1
