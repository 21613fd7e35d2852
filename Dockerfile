# syntax=docker/dockerfile:1

# The relay in a container: not root, no capability, no writable file system.
#
#   docker build -t pyrycode-relay .
#   docker run --read-only --cap-drop=ALL --security-opt=no-new-privileges \
#     --ulimit=nofile=20480 --memory=1g --stop-timeout=15 -p 127.0.0.1:8080:8080 pyrycode-relay
#
# docs/install.md has more, under "In a container".

ARG BASE=python:3.13-slim
# Pins the base image: --build-arg DIGEST=@sha256:...
ARG DIGEST=

FROM ${BASE}${DIGEST} AS build
WORKDIR /src
COPY setup.cfg pyproject.toml LICENSE ./
COPY docs/package.md docs/package.md
COPY pyrycode_relay pyrycode_relay
COPY twisted twisted
# A virtual environment without pip, because it is copied whole and nothing is installed later.
RUN python -m venv --without-pip /opt/relay \
    && pip --python /opt/relay/bin/python install --no-cache-dir '/src[push]'
# twistd caches the plugins that it finds. Write the cache now, because the root is read-only later.
RUN /opt/relay/bin/twistd --help >/dev/null \
    && test -s "$(/opt/relay/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/twisted/plugins/dropin.cache"
# For data that must outlive the container (certificates of an ACME CA): mount a volume here.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/pyrycode-relay

FROM ${BASE}${DIGEST}
LABEL org.opencontainers.image.title="pyrycode-relay" \
      org.opencontainers.image.description="A WebSocket relay between phones and the pyry daemon" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/relay /opt/relay
COPY --from=build --chown=10001:10001 /var/lib/pyrycode-relay /var/lib/pyrycode-relay
ENV PATH=/opt/relay/bin:$PATH
ENV PYTHONDONTWRITEBYTECODE=1
# URL that the health check probes, after any options. Change it if you change CMD.
ENV RELAY_PROBE=ws://127.0.0.1:8080
# A number, so that orchestrators see that the user is not root.
USER 10001:10001
WORKDIR /var/lib/pyrycode-relay
EXPOSE 8080
# A drain takes up to 10 s (--drain-timeout), so allow more than docker's default of 10, as above.
STOPSIGNAL SIGTERM
# Each probe takes four upgrades, of the ten per minute that an address may have. Docker reserves the
# statuses other than 0 and 1.
HEALTHCHECK --interval=60s --timeout=15s --start-period=10s --retries=2 \
    CMD pyrycode-relay-probe --quiet --timeout=10 $RELAY_PROBE || exit 1
ENTRYPOINT ["twistd", "--nodaemon", "--pidfile=", "pyrycode-relay"]
# Plain WebSockets, for a TLS proxy in front. Arguments of `docker run` replace this.
CMD ["--insecure-listen=:8080"]
