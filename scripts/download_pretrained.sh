#!/usr/bin/env bash
# Fetch the weights that training starts from:
#     bash scripts/download_pretrained.sh NAME|all [--dir=models] [--sha256=HEX]
# NAME is a model (cmu, vgg, mobilenet, ...) or a file of the table below (mobilenet_v1_0.75, ...). published_* are graphs
# that the original trained on COCO: starts, and what to compare with. Batch norm of the v2 ones is in training mode:
#     bash scripts/freeze_and_optimize.sh --graph=models/published/mobilenet_v2_small.pb --batch-norm-from=PHOTOS
#
# An interrupted download is resumed. A file appears under its final name only when it is whole: it is fetched to
# NAME.part, checked against its SHA-256 where the table or --sha256 gives one, and renamed (archives: unpacked beside it,
# then renamed).
# PRETRAINED_URL=https://mirror/folder fetches every file from that folder instead.
set -euo pipefail

# file of the table   base URLs, tried in this order                   file to fetch                              in the models folder                       bytes     SHA-256
TABLE='
mobilenet_v1_0.50     http://download.tensorflow.org/models            mobilenet_v1_0.50_224_2017_06_14.tar.gz    pretrained/mobilenet_v1_0.50_224_2017_06_14 -        -
mobilenet_v1_0.75     http://download.tensorflow.org/models            mobilenet_v1_0.75_224_2017_06_14.tar.gz    pretrained/mobilenet_v1_0.75_224_2017_06_14 -        -
mobilenet_v1_1.0      http://download.tensorflow.org/models            mobilenet_v1_1.0_224_2017_06_14.tar.gz     pretrained/mobilenet_v1_1.0_224_2017_06_14  -        -
mobilenet_v2_0.5      https://storage.googleapis.com/mobilenet_v2/checkpoints mobilenet_v2_0.5_224.tgz             pretrained/mobilenet_v2_0.5_224             -        -
mobilenet_v2_0.75     https://storage.googleapis.com/mobilenet_v2/checkpoints mobilenet_v2_0.75_224.tgz            pretrained/mobilenet_v2_0.75_224            -        -
mobilenet_v2_1.0      https://storage.googleapis.com/mobilenet_v2/checkpoints mobilenet_v2_1.0_224.tgz             pretrained/mobilenet_v2_1.0_224             -        -
mobilenet_v2_1.4      https://storage.googleapis.com/mobilenet_v2/checkpoints mobilenet_v2_1.4_224.tgz             pretrained/mobilenet_v2_1.4_224             -        -
published_thin        https://github.com/jiajunhua/ildoonet-tf-pose-estimation/raw/master/models/graph/mobilenet_thin,https://github.com/gsethi2409/tf-pose-estimation/raw/master/models/graph/mobilenet_thin graph_freeze.pb published/mobilenet_thin.pb - -
published_v2_small    https://github.com/gsethi2409/tf-pose-estimation/raw/master/models/graph/mobilenet_v2_small,https://github.com/jiajunhua/ildoonet-tf-pose-estimation/raw/master/models/graph/mobilenet_v2_small graph_opt.pb published/mobilenet_v2_small.pb 2096019 428a9d6e7bfc0319e1ce4de8c0191a9111cd281bea6ae2b496fd42c92d574160
published_v2_large    https://github.com/gsethi2409/tf-pose-estimation/raw/master/models/graph/mobilenet_v2_large,https://github.com/jiajunhua/ildoonet-tf-pose-estimation/raw/master/models/graph/mobilenet_v2_large graph_opt.pb published/mobilenet_v2_large.pb - -
published_cmu         -                                                graph_freeze.pb                            published/cmu.pb                            -        -
vgg                   http://download.tensorflow.org/models            vgg_19_2016_08_28.tar.gz                   pretrained/vgg_19_2016_08_28                -        -
openpose_coco         -                                                openpose_coco.npy                          numpy/openpose_coco.npy                     -        -
cmu                   http://vcl.snu.ac.kr/OpenPose/models/pose/coco,https://huggingface.co/camenduru/openpose/resolve/main/models/pose/coco,http://posefs1.perception.cs.cmu.edu/OpenPose/models/pose/coco pose_iter_440000.caffemodel pretrained/pose_iter_440000.caffemodel 209274056 b4cf475576abd7b15d5316f1ee65eb492b5c9f5865e70a2e7882ed31fb682549
'
# `-` as a base URL: the file has no lasting public address. As bytes or SHA-256: not known; the script prints what it got.
# cmu: the authors' weights. OpenPose's own getModels.sh fetches them from the first address; the second is a copy, the
# third where they were published first.

fail() { echo "error: $*" >&2; exit 2; }
mirror='name a mirror with PRETRAINED_URL=URL'

usage='usage: bash scripts/download_pretrained.sh NAME|all [--dir=models] [--sha256=HEX]'
name='' dir=models expected=''
for argument in "$@"; do
    case $argument in
        --help|-h) echo "$usage"; echo "files:"; awk 'NF { print "  " $1, "->", $4 }' <<< "$TABLE"; exit 0 ;;
        --dir=?*) dir=${argument#--dir=} ;;
        --sha256=?*) expected=$(tr A-F a-f <<< "${argument#--sha256=}") ;;
        -*) fail "unknown flag $argument; $usage" ;;
        *) [ -z "$name" ] || fail "one NAME only, not $name and $argument; $usage"; name=$argument ;;
    esac
done
[ -n "$name" ] || fail "which one? $usage"
[ "$name" != all ] || [ -z "$expected" ] || fail "--sha256 is for one NAME, not for all"
case $name in
    openpose) name=cmu ;;
    mobilenet|mobilenet_thin|mobilenet_light) name=mobilenet_v1_0.75 ;;
    mobilenet_fast) name=mobilenet_v1_0.50 ;;
    mobilenet_accurate|mobilenet_light_1.0) name=mobilenet_v1_1.0 ;;
    mobilenet_v2_large|mobilenet_v2_w1.4_*) name=mobilenet_v2_1.4 ;;
    mobilenet_v2_w1.0_*) name=mobilenet_v2_1.0 ;;
    mobilenet_v2_w0.75_*) name=mobilenet_v2_0.75 ;;
    mobilenet_v2_small|mobilenet_v2_w0.5_*) name=mobilenet_v2_0.5 ;;
esac

sha256() { if command -v sha256sum > /dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1; }

# fetch URL FILE: FILE grows from where it is. curl's codes: 22 with a partial file may be "416, nothing is left to send"
# or a file that changed on the server, 33 a server that cannot resume: in those cases fetch it anew, once.
fetch() {
    local status=0 curl='curl --fail --location --silent --show-error --retry 3 --connect-timeout 30'
    if command -v curl > /dev/null; then
        $curl --continue-at - --output "$2" "$1" || status=$?
        if [ -s "$2" ] && { [ $status = 22 ] || [ $status = 33 ]; }; then
            status=0
            $curl --output "$2.new" "$1" || status=$?
            [ $status != 0 ] || mv "$2.new" "$2"
            rm -f "$2.new"
        fi
    elif command -v wget > /dev/null; then
        wget --quiet --tries=4 --continue --output-document="$2" "$1" || status=$?
    else
        fail "neither curl nor wget is installed; install one of them"
    fi
    return $status
}

# whats_wrong FILE PART TARGET BYTES SHA256: why what was fetched to PART is not FILE; nothing when it is. `-`: not known.
# An archive is unpacked to TARGET.part.
whats_wrong() {
    local bytes actual
    bytes=$(wc -c < "$2" | tr -d ' ') actual=$(sha256 "$2")
    if [ "$4" != - ] && [ "$4" != "$bytes" ]; then
        echo "has $bytes bytes, not $4: not the published file"
    elif [ "$5" != - ] && [ "$5" != "$actual" ]; then
        echo "has SHA-256 $actual, not $5: damaged or changed"
    elif [[ $1 == *.t*gz ]]; then
        rm -rf "$3.part"
        mkdir "$3.part"
        if ! tar -xzf "$2" -C "$3.part" 2> /dev/null || [ -z "$(find "$3.part" -name '*.ckpt*')" ]; then
            rm -rf "$3.part"
            echo "is not an archive with a checkpoint"
        fi
    elif [[ $1 == *.pb ]] && head -c 1 "$2" | grep -q .; then  # a graph begins with a line feed, a page does not
        echo "is not a graph (.pb)"
    elif [[ $1 == *.npy ]] && [ "$(head -c 6 "$2" | tail -c 5)" != NUMPY ]; then
        echo "is not a .npy file"
    fi
}

download() {
    local bases=$2 file=$3 target=$dir/$4 size=$5 checksum=$6 base wrong=''
    if [ -e "$target" ]; then
        echo "$1: $target is there already"
        return
    fi
    bases=${PRETRAINED_URL:-$bases}
    if [ "$bases" = - ]; then
        local text="$1: $file has no lasting public address; put a copy at $target, or $mirror"
        [ "$name" = all ] || fail "$text"
        echo "skipped $text"
        return
    fi
    mkdir -p "$(dirname "$target")" || fail "$dir cannot be written; choose another folder with --dir=DIR"
    local part; part=$(dirname "$target")/$file.part
    if [[ $file == *.pb ]]; then  # all graphs have one name where they were published
        part=$target.part
        [ -z "${PRETRAINED_URL:-}" ] || file=$(basename "$target")
    fi
    # One at a time: another download of the same file is waited for, and then its file is there.
    if command -v flock > /dev/null; then
        exec 9< "$(dirname "$target")"
        flock --nonblock 9 || { echo "$1: another download is at work there: waiting for it"; flock 9; }
        if [ -e "$target" ]; then
            echo "$1: $target is there already"
            exec 9<&-
            return
        fi
    fi
    if [ -n "$expected" ]; then
        checksum=$expected size=-
    fi
    for base in ${bases//,/ }; do
        [ -z "$wrong" ] || echo "$1: $wrong"
        echo "$1: $base/$file -> $target"
        if ! fetch "$base/$file" "$part"; then
            wrong="$base/$file could not be fetched; run the same command again to resume, or $mirror"
            # Only a checksum tells whether another address goes on with the same file.
            [ "$checksum" != - ] || [[ $bases != *,* ]] || rm -f "$part"
            continue
        fi
        wrong=$(whats_wrong "$file" "$part" "$target" "$size" "$checksum")
        [ -n "$wrong" ] || break
        rm -f "$part"
        wrong="$base/$file $wrong; nothing was kept, run the command again or $mirror"
    done
    [ -z "$wrong" ] || fail "$wrong"
    echo "$1: SHA-256 $(sha256 "$part")$([ "$checksum" = - ] && echo ' (none is known to compare with)' || echo ' as expected')"
    if [ -d "$target.part" ]; then
        # Some archives have the files in a folder of their own.
        find "$target.part" -mindepth 2 -name '*.ckpt*' -exec mv {} "$target.part" \;
        mv "$target.part" "$target"
        rm -f "$part"
    else
        mv "$part" "$target"
    fi
}

found=no
while read -r row bases file target size checksum; do
    if [ -n "$row" ] && { [ "$name" = all ] || [ "$name" = "$row" ]; }; then
        found=yes
        download "$row" "$bases" "$file" "$target" "$size" "$checksum"
    fi
done <<< "$TABLE"
[ $found = yes ] || fail "$name is none of $(awk 'NF { printf "%s, ", $1 }' <<< "$TABLE")all, or a model's name"
