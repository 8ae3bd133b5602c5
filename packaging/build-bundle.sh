#!/usr/bin/env bash
# Builds what a machine without internet installs from: each package as a wheel with its hash, and the installer.
#
#   packaging/build-bundle.sh --extra cpu|gpu [--offline] [--python PYTHON] [--output FOLDER] [--downloads FOLDER]
#
# The bundle is for machines with the same release of Debian or Ubuntu, the same Python (3.11 on Debian 12) and
# the same kind of processor as this one. What was downloaded once stays in build/downloads; with --offline
# nothing else is asked for.
set -euo pipefail

die() { printf 'build-bundle: %s\n' "$*" >&2; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extra="" offline="" python=python3 output="$here/dist" downloads=""
while [ $# -gt 0 ]; do
    case "$1" in
        --extra) extra=${2:-}; shift 2 ;;
        --offline) offline=yes; shift ;;
        --python) python=${2:-}; shift 2 ;;
        --output) output=${2:-}; shift 2 ;;
        --downloads) downloads=${2:-}; shift 2 ;;
        *) die "what is $1? Known: --extra cpu|gpu, --offline, --python PYTHON, --output FOLDER, --downloads FOLDER" ;;
    esac
done
case "$extra" in cpu | gpu) ;; *) die "name --extra cpu or --extra gpu: the two exclude each other" ;; esac

lock="$here/locks/$extra.txt"
python_version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
downloads=${downloads:-$here/build/downloads/$extra-py$python_version}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$downloads" "$output"

# The sources alone: what an earlier build left behind must not get into the wheel.
sources() {
    cd "$here"
    if [ -e .git ]; then
        git ls-files -z
    else
        find . -name .venv -prune -o -name build -prune -o -name dist -prune -o -type f -print0
    fi
}
mkdir "$work/source"
sources | tar -C "$here" --null --ignore-failed-read -T - -cf - | tar -C "$work/source" -xf -

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$work/source/dicom_node/__init__.py")
[ -n "$version" ] || die "dicom_node/__init__.py states no __version__"
label=$version
if [ -e "$here/.git" ] && ! git -C "$here" describe --exact-match --tags >/dev/null 2>&1; then
    # No release: the commit tells one such version from the next.
    label="$version+$(git -C "$here" rev-parse --short HEAD)"
    git -C "$here" diff --quiet HEAD || label="$label.changed"
fi
if [ -e "$here/.git" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$here" log -1 --format=%ct)
    export SOURCE_DATE_EPOCH
fi

# pip and setuptools in the locked versions build everything else.
if [ -z "$offline" ]; then
    "$python" -m venv "$work/env"
    "$work/env/bin/pip" download --quiet --require-hashes --no-deps -r "$here/locks/pip.txt" -d "$downloads"
else
    "$python" -m venv --without-pip "$work/env"
fi
pip_pinned=$(sed -n 's/^pip==\([^ ]*\).*/\1/p' "$here/locks/pip.txt")
pip_wheel=$(find "$downloads" -name "pip-$pip_pinned-*.whl")
[ -n "$pip_wheel" ] || die "$downloads holds no pip $pip_pinned; run this once without --offline"
run_pip() { "$work/env/bin/python" "$pip_wheel/pip" "$@"; }

awk '/^setuptools==/ { found = 1 } found { print } found && !/\\$/ { exit }' "$lock" >"$work/setuptools.txt"
index=()
[ -z "$offline" ] || index=(--no-index --find-links "$downloads")
run_pip install --quiet "${index[@]}" --require-hashes -r "$work/setuptools.txt"
if [ -z "$offline" ]; then
    run_pip download --quiet --require-hashes --no-deps --no-build-isolation -r "$lock" -d "$downloads"
fi

# Each is an installation of its own, with a name of its own.
label="$label-$extra"
bundle="$work/anatomynode-$label"
mkdir -p "$bundle/wheels" "$bundle/pip"
cp "$pip_wheel" "$bundle/pip/"
run_pip wheel --quiet --no-index --find-links "$downloads" --require-hashes --no-deps --no-build-isolation \
    -r "$lock" -w "$bundle/wheels"
# It has built the others; an installed node has no use for it.
rm "$bundle"/wheels/setuptools-*.whl
run_pip wheel --quiet --no-index --no-deps --no-build-isolation -w "$bundle/wheels" "$work/source"

# What the program needs beside its modules must be in its wheel.
own=$(find "$bundle/wheels" -name 'anatomynode-*.whl')
"$python" -m zipfile -l "$own" | awk 'NR > 1 { print $1 }' >"$work/contents"
cd "$work/source"
find dicom_node/migrations dicom_node/templates dicom_node/*.md models/packages models/configs -type f | while read -r file; do
    grep -qxF "$file" "$work/contents" || die "$(basename "$own") lacks $file"
done
find config.yaml CHANGELOG.md systemd monitoring docs -type f ! -name '*.py' | while read -r file; do
    grep -qF ".data/data/share/anatomynode/$file" "$work/contents" || die "$(basename "$own") lacks $file"
done

# Names, versions and hashes of the wheels themselves, which pip compares on the other machine.
cd "$bundle/wheels"
for wheel in *.whl; do
    IFS=- read -r name number _ <<<"$wheel"
    printf '%s==%s --hash=sha256:%s\n' "$name" "$number" "$(sha256sum "$wheel" | cut -d' ' -f1)"
done >../requirements.txt

cd "$bundle"
install -m 0755 "$work/source/packaging/anatomynode-install" "$work/source/packaging/anatomynode-command" .
cp "$work/source/docs/INSTALL.md" "$work/source/CHANGELOG.md" "$work/source/LICENSE" .
printf 'version=%s\nextra=%s\npython=%s\nmachine=%s\n' "$label" "$extra" "$python_version" "$(uname -m)" >BUNDLE
find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum >"$work/sums"
mv "$work/sums" SHA256SUMS

name="anatomynode-$label-py$python_version-$(uname -m).tar.gz"
# Wheels are compressed already.
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" \
    -cf - "anatomynode-$label" | gzip -n -1 >"$output/$name"
cd "$output"
sha256sum "$name" >"$name.sha256"
printf '%s (%s)\n' "$output/$name" "$(du -h "$name" | cut -f1)"
