#!/usr/bin/env bash
# Makes an R with Seurat 5 for a machine without conda: FOLDER/root, a root folder of Debian trixie, and FOLDER/Rscript,
# which runs R in it. Needs Debian and root; about 700 MB and a few minutes. Usage: tools/r-root.sh FOLDER
set -euo pipefail

# A newer Debian's packages on an older host would upgrade half of it: hence a folder of their own.
SUITE=trixie
PACKAGES=r-cran-seurat,r-cran-hdf5r,libopenblas0-pthread
LEFT_OUT=(/usr/share/man /usr/share/doc /usr/share/locale /usr/share/info /usr/include/boost
    /usr/share/javascript/mathjax)

fail() {
    echo "make r: $1; with conda, use envs/seurat.yaml instead" >&2
    exit 1
}

folder=${1:?usage: tools/r-root.sh FOLDER}
root=$folder/root
# Written last: without it a root folder is not whole, and with another one it is of another recipe.
made_from="$SUITE $PACKAGES ${LEFT_OUT[*]}"
if [ "$(cat "$root/etc/made-from" 2>/dev/null)" = "$made_from" ]; then
    install "$(dirname "$0")/Rscript" "$folder/Rscript"
    echo "$root: an R with Seurat $(awk '$1 == "r-cran-seurat" { print $2 }' "$root/etc/packages.lock") is there already"
    exit 0
fi
grep --quiet --no-messages '^ID=debian$' /etc/os-release || fail "this is not Debian"
command -v apt-get >/dev/null || fail "there is no apt-get"
[ "$(id -u)" = 0 ] || fail "this needs root"

mkdir -p "$folder"
exec 9>"$root.lock"
flock --nonblock 9 || fail "another one is at work on $root"
# Of a build that was killed, or of another recipe. Mounts are made in a name space that ends with its process.
rm -rf --one-file-system "$folder/Rscript" "$root" "$root.partial"

if ! command -v mmdebstrap >/dev/null; then
    apt-get update --quiet --quiet || fail "apt-get update failed"
    apt-get install --yes --quiet --quiet --no-install-recommends mmdebstrap || fail "no package mmdebstrap"
fi
mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT)' 'Created-By: Packages' |
    awk '$2 == "main" { print $1; exit }')
[ -n "$mirror" ] || fail "apt has no source with the component main; run apt-get update"

exclude=()
for path in "${LEFT_OUT[@]}"; do exclude+=(--dpkgopt="path-exclude=$path/*"); done
check='packageVersion("Seurat") >= "5.0.0" && requireNamespace("hdf5r")'
mmdebstrap --quiet --variant=apt --mode=root --components=main --include="$PACKAGES" --skip=output/dev \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' "${exclude[@]}" \
    --customize-hook='rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*' \
    --customize-hook='chroot "$1" dpkg-query -W >"$1"/etc/packages.lock' \
    --customize-hook="chroot \"\$1\" Rscript -e 'stopifnot($check)'" \
    "$SUITE" "$root.partial" \
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $SUITE main" ||
    fail "mmdebstrap could not make $root from the mirror of apt's configuration"
echo "$made_from" >"$root.partial/etc/made-from"
mv "$root.partial" "$root"
install "$(dirname "$0")/Rscript" "$folder/Rscript"
echo "$root: an R with Seurat $(awk '$1 == "r-cran-seurat" { print $2 }' "$root/etc/packages.lock")"
