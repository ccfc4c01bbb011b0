# Mini-Stream's images, for BuildKit and Docker's classic builder alike:
#
#   control   a gateway's control server, with the proxies that it starts (services p2cs and c2cs)
#   pipeline  acquisition, reconstruction, and the user's client (services producer, receiver, worker, ministream)
#
#   docker build --target pipeline --tag mini-stream/pipeline .
ARG BASE=debian:bookworm-slim

# Python, and the user that every service is.
FROM ${BASE} AS python
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends python3 >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/log/* \
 && useradd --uid 10001 --home-dir /tmp --no-create-home --shell /bin/bash ministream
ENV PATH=/app/bin:/opt/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="Mini-Stream" \
      org.opencontainers.image.description="Live tomography across facilities" \
      org.opencontainers.image.licenses="MIT"

# What only building needs. Packages go to /opt/venv, by the lock's hashes, and nothing is compiled.
# Of stunnel4 the program is enough: its package wants Perl, half as large as all else, for a wrapper of old settings.
FROM python AS builder
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends binutils ca-certificates python3-pip >/dev/null \
 && cd /tmp && apt-get download -qq stunnel4 && dpkg --extract stunnel4_*.deb /stunnel \
 && python3 -m venv --without-pip /opt/venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_PROGRESS_BAR=off

# Our own code, with the entry points; a change of it renews a small layer only.
FROM builder AS app
COPY LICENSE README.md pyproject.toml /src/
COPY aps_mini_apps /src/aps_mini_apps
COPY delivery /src/delivery
COPY ministream /src/ministream
COPY producer /src/producer
COPY receiver /src/receiver
COPY s2cs /src/s2cs
RUN pip --python /opt/venv/bin/python install --quiet --no-deps --target /app /src

FROM builder AS control-packages
COPY requirements-s2cs.txt /
RUN pip --python /opt/venv/bin/python install --quiet --only-binary :all: --requirement /requirements-s2cs.txt

FROM python AS control
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends haproxy nginx libnginx-mod-stream openssh-server libwrap0 >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/log/* /etc/ssh/ssh_host_* \
 && install -d -o ministream -g ministream -m 700 /var/lib/s2cs /access
COPY --from=builder /stunnel/usr/bin/stunnel4 /usr/bin/stunnel
COPY --from=control-packages /opt/venv /opt/venv
COPY --from=app /app /app
COPY docker/gateway docker/healthy /usr/bin/
ENV MINISTREAM_S2CS_SERVER_CRT=/var/lib/s2cs/site/server.crt \
    MINISTREAM_S2CS_SERVER_KEY=/var/lib/s2cs/site/server.key \
    MINISTREAM_S2CS_STATE_DIR=/var/lib/s2cs/state \
    MINISTREAM_S2CS_METRICS_PORT=9464
USER ministream
HEALTHCHECK --interval=2s --timeout=2s --start-period=20s --retries=3 \
    CMD healthy "http://${MINISTREAM_S2CS_METRICS_IP:-127.0.0.1}:${MINISTREAM_S2CS_METRICS_PORT}/metrics"
ENTRYPOINT ["gateway"]

FROM builder AS pipeline-packages
COPY requirements.txt /
RUN pip --python /opt/venv/bin/python install --quiet --only-binary :all: --requirement /requirements.txt \
 && strip --strip-unneeded /opt/venv/lib/python3*/site-packages/hdf5plugin/plugins/*.so  # 185 MB to 20

FROM python AS pipeline
# OpenMP's threads wait awake for the next loop; without it Numba takes threads of its own that nap in between.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libgomp1 >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/log/*
RUN install -d -o ministream -g ministream /mnt/output /var/cache/mini-stream \
 && install -d -o ministream -g ministream -m 700 \
    /access /access/producer /access/consumer /access/receiver /var/lib/receiver
COPY --from=pipeline-packages /opt/venv /opt/venv
COPY --from=app /app /app
COPY docker/healthy /usr/bin/
ENV NUMBA_CACHE_DIR=/var/cache/mini-stream \
    MPLCONFIGDIR=/tmp/matplotlib
USER ministream
# A small scan tries the image, and leaves the kernels of all programs compiled: for this machine's kind of processor
# (on another one they are compiled again) and into folders that begin as copies of this one, being volumes.
RUN ministream run --columns 64 --rows 16 --projections 40 --frame-rate 0 --timeout 600 --output /tmp/scan && rm -rf /tmp/*
CMD ["ministream", "--help"]
