# Weights as an image, for the component image-volume. The tag is the name of the folder. Run in its parent folder:
#   hf download Qwen/Qwen3-Embedding-0.6B --revision 97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3 --local-dir qwen3-embedding-0.6b
#   docker build -f …/deploy/docker/weights.Dockerfile --build-arg MODEL=qwen3-embedding-0.6b -t winnow-weights-embed:qwen3-embedding-0.6b .
FROM scratch
ARG MODEL
COPY ${MODEL} /${MODEL}
