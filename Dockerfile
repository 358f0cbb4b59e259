# The pipeline in a container:
#
#   docker build --tag emotion-detection .
#   docker run --name faces emotion-detection           # make repro
#   docker cp faces:/project/reports reports
#   docker run --rm emotion-detection make test
#
# The stage `tools` is what .devcontainer/ starts from.
FROM python:3.12-slim-bookworm AS tools
RUN apt-get update \
    && apt-get install --yes --no-install-recommends chromium git make postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --shell /bin/bash user \
    && install --directory --owner user --group user /project
ENV DVC_NO_ANALYTICS=1
USER user

FROM tools
WORKDIR /project
RUN git config --global user.name "A Person" \
    && git config --global user.email person@example.org
COPY --chown=user LICENSE Makefile README.md pyproject.toml requirements*.txt ./
COPY --chown=user src src
RUN make .venv/.dev
COPY --chown=user . .
CMD ["make", "repro"]
