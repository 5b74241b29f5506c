# FKV_STATIC: the program needs no library but libc and libm, and CUDA's own where it has that backend. pkg-config's
# libraries are then lib*.a, which the caller looked for by CMAKE_FIND_LIBRARY_SUFFIXES. Their licences come along.

# What libarchive needs for the formats that walk.c and unpack.c register. pkg-config --static would name libacl, liblz4
# and libxml2 too, of which Debian has not all as lib*.a.
foreach(name IN ITEMS nettle lzma bz2)
  find_library(FKV_STATIC_${name} ${name})
  target_link_libraries(PkgConfig::archive INTERFACE ${FKV_STATIC_${name}})
endforeach()
target_link_libraries(PkgConfig::archive INTERFACE PkgConfig::zstd PkgConfig::z)
list(APPEND FKV_BUILT_WITH nettle liblzma libbz2)

foreach(short IN ITEMS archive zstd inih jansson pcre2 utf8proc xxhash z)
  get_target_property(files PkgConfig::${short} INTERFACE_LINK_LIBRARIES)
  foreach(file IN LISTS files)
    if(NOT file MATCHES "\\.a$|^PkgConfig::")
      message(FATAL_ERROR "FKV_STATIC: ${file} is no static library (lib*.a). Debian 12 has them all: tests/debian.sh tests "
                          "installs them. A build folder that was configured without FKV_STATIC keeps the shared ones: take a new one")
    endif()
  endforeach()
endforeach()

# Licences as Debian says them: package and short form. A tarball without their texts may not be passed on.
set(licences "${PROJECT_BINARY_DIR}/licences")
file(REMOVE_RECURSE "${licences}")
set(list "# Libraries that are part of this program\n\nTheir licences stand beside this file, as Debian has them.\n\n")
foreach(row IN ITEMS
    "libarchive-dev: BSD-2-Clause, parts BSD-3-Clause or public domain" "libzstd-dev: BSD-3-Clause" "libinih-dev: BSD-3-Clause"
    "libjansson-dev: MIT" "libpcre2-dev: BSD-3-Clause" "libutf8proc-dev: MIT, its tables Unicode" "libxxhash-dev: BSD-2-Clause"
    "zlib1g-dev: Zlib" "nettle-dev: LGPL-3.0-or-later or GPL-2.0-or-later" "liblzma-dev: public domain" "libbz2-dev: bzip2-1.0.6")
  string(REGEX MATCH "^([^:]+)-dev: (.*)$" row "${row}")
  set(text "/usr/share/doc/${CMAKE_MATCH_1}-dev/copyright")
  if(NOT EXISTS "${text}")
    message(FATAL_ERROR "FKV_STATIC: ${text}, the licence of what is linked, is not there: static programs are made on Debian 12")
  endif()
  configure_file("${text}" "${licences}/${CMAKE_MATCH_1}.txt" COPYONLY)
  string(APPEND list "- ${CMAKE_MATCH_1}: ${CMAKE_MATCH_2}\n")
endforeach()
string(APPEND list "\nTo link with other versions of them, as nettle's licence lets you: the source of fairkv-batch, and there\n"
                   "`cmake --workflow --preset tarball`.\n")
if(CMAKE_CUDA_COMPILER)
  string(APPEND list "\nThe CUDA runtime (libcudart_static) is NVIDIA's, under the CUDA Toolkit's licence (docs.nvidia.com/cuda/eula).\n")
endif()
file(WRITE "${licences}/README.md" "${list}")
