# The gateway, without torch or model code. Build from the root of the repository:
#   docker build -f deploy/docker/gateway.Dockerfile -t winnow-gateway:0.1.0 .
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /app
COPY pyproject.toml constraints.txt ./
# Dependencies first: they change less often than the code, so their layer is cached.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); g = p['dependency-groups']; print('\n'.join(p['project']['dependencies'] + g['services'] + g['gateway']))" > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY protos protos
# The stubs are generated in this stage; the compiler is not part of the final image.
RUN python -m venv /opt/gen \
    && /opt/gen/bin/pip install -c constraints.txt grpcio-tools mypy-protobuf \
    && /opt/gen/bin/python protos/generate.py .

FROM ${PYTHON}
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app/winnow winnow
COPY services/runtime services/runtime
COPY services/api services/api
COPY gateway gateway
# A number, not a name: Kubernetes verifies runAsNonRoot by the number only.
USER 10001:10001
EXPOSE 50050 8080 9090
CMD ["python", "-m", "gateway"]
