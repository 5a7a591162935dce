.PHONY: native
native:  ## build the MXFP4 kernels in place, for development from a checkout
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	cmake --build build/native -j2
	cp build/native/_mxfp4.so gptoss_adapters/mxfp4/_mxfp4.so
