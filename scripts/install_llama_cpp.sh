#!/bin/sh
# llama-cpp-python for the virtual environment at $1, in 2.5 to 3.5 minutes on 2 cores.
#
#   scripts/install_llama_cpp.sh VENV [BUILD_DIR] [SOURCE_DIR]
#
# There is no prebuilt Linux wheel, and `pip install llama-cpp-python` also compiles llama.cpp's common code and its
# multimodal library, which the bindings do not need. So: build libllama and ggml only, install the bindings without a
# build, and put the libraries where the bindings look first (llama_cpp/lib), so that no variable has to be set.
# Runs again: does nothing once the bindings of this version load. The libraries are tuned to the CPU that builds them
# (GGML_NATIVE): do not carry them to another machine.
set -eu

VERSION=0.3.36
VENV=${1:?usage: $0 VENV [BUILD_DIR] [SOURCE_DIR]}
VENV=$(cd "$VENV" && pwd)
PY=$VENV/bin/python
BUILD=${2:-$VENV/llama-build}
SRC=${3:-$VENV/llama-src}
PATH=$VENV/bin:$PATH
export PATH

installed() {
    "$PY" -c "import llama_cpp; assert llama_cpp.__version__ == '$VERSION'; llama_cpp.llama_backend_init()" 2>/dev/null
}
libraries() { "$PY" -c "import importlib.util as u; print(u.find_spec('llama_cpp').submodule_search_locations[0] + '/lib')"; }

if installed; then
    echo "llama-cpp-python $VERSION is already in $VENV ($(libraries))"
    exit 0
fi

mkdir -p "$BUILD" "$SRC"
"$PY" -m pip install -q "scikit-build-core>=0.11" cmake ninja "typing-extensions>=4.5" numpy diskcache jinja2
SDIST=$SRC/llama_cpp_python-$VERSION.tar.gz
if [ ! -f "$SDIST" ]; then
    # --no-binary for this one package only: ":all:" would compile cmake from source as well.
    "$PY" -m pip download -q --no-deps --no-build-isolation --no-binary llama-cpp-python -d "$SRC" \
        "llama-cpp-python==$VERSION"
fi
TREE=$SRC/llama_cpp_python-$VERSION
[ -f "$TREE/.unpacked" ] || { tar xzf "$SDIST" -C "$SRC" && touch "$TREE/.unpacked"; }

# gcc 12's _tile_loadconfig reads 8 of the 64 bytes it is given, so the rest of ggml's AMX tile configuration is optimised
# away and the first Q8_0 product kills the process (ggml-org/llama.cpp#26954): the same instruction, with the right size.
sed -i.orig 's/_tile_loadconfig(&tc);/__asm__ volatile("ldtilecfg %0" :: "m"(tc));/' \
    "$TREE/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"

cmake -S "$TREE/vendor/llama.cpp" -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
    -DGGML_NATIVE=ON -DGGML_LLAMAFILE=OFF \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF > "$BUILD/cmake.log"
ninja -C "$BUILD" -j2 llama > "$BUILD/ninja.log" || { tail -20 "$BUILD/ninja.log"; exit 1; }

CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
    "$PY" -m pip install -q --no-deps --no-build-isolation "$SDIST"
LIB=$(libraries)
mkdir -p "$LIB"
cp -a "$BUILD"/bin/lib*.so "$BUILD"/bin/lib*.so.* "$LIB"/
installed || { echo "llama-cpp-python was installed but does not load from $LIB" >&2; exit 1; }
echo "llama-cpp-python $VERSION is in $VENV ($LIB)"
