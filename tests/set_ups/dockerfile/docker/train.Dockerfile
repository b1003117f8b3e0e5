ARG BASE=launch-test/python:2
FROM ${BASE} AS wheels
WORKDIR /wheels
COPY vendor/ ./
RUN echo "built with $(cat level.txt)" > made.txt

FROM ${BASE}
ARG LEVEL=2
ENV LEVEL=${LEVEL} PYTHONUNBUFFERED=1
WORKDIR /workspace/trainer
COPY --from=wheels /wheels/made.txt /opt/made.txt
COPY trainer/ .
RUN useradd trainer 2>/dev/null || true
ENTRYPOINT ["python", "fit.py"]
CMD ["--steps", "1"]
