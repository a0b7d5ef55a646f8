# sh fetch.sh SOURCE TARGET: copies a folder, or downloads NAME@REVISION from the hub, to the folder TARGET, atomically.
set -eu
source=$1 target=$2
if [ -d "$target" ]; then
  echo "$target is there already"
  exit 0
fi
partial="$(dirname "$target")/.$(basename "$target").partial"
if [ -d "$source" ]; then
  rm -rf "$partial"
  cp -r "$source" "$partial"
else
  hf download "${source%@*}" --revision "${source##*@}" --local-dir "$partial"
  rm -rf "$partial/.cache"
fi
mv "$partial" "$target"
echo "$target is complete"
