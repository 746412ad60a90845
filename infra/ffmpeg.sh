#!/bin/sh
# FFmpeg's shared libraries (for torchcodec) and program (for the tests' media): check, and install where that is possible.
if command -v ffmpeg >/dev/null 2>&1 && ldconfig -p 2>/dev/null | grep -q libavcodec; then
  exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "setup: installing Debian's ffmpeg"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ffmpeg >/dev/null && exit 0
fi
echo "setup: FFmpeg is missing; install it (Debian, Ubuntu: sudo apt-get install -y ffmpeg; Fedora: sudo dnf install -y ffmpeg) and run make again" >&2
exit 1
