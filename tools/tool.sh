# Is sourced by what needs tools of pinned versions, with root set.

# tool PACKAGE VERSION builds a tool unless it is there and prints its path.
tool() {
  local name=${1%/v[0-9]}
  name=$(basename "$name")
  local path=$root/bin/tools/$name-$2
  if [[ ! -x $path ]]; then
    echo "$(basename "$0"): building $name $2" >&2
    local dir
    dir=$(mktemp -d)
    # GOFLAGS and a go.work of the caller's have no say in the tools.
    (cd "$dir" && GOFLAGS='' GOWORK=off GOBIN=$dir go install "$1@$2" >&2)
    mkdir -p "$root/bin/tools"
    mv "$dir/$name" "$path"
    rm -rf "$dir"
  fi
  echo "$path"
}
