// Retrieve, then rerank, in one call. Run it against a gateway: WINNOW_ADDRESS=localhost:50050 npm start
import { credentials, loadPackageDefinition, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { fileURLToPath } from "node:url";
import type { ProtoGrpcType as EmbedTypes } from "./generated/embed.js";
import type { ProtoGrpcType as RetrievalTypes } from "./generated/retrieval.js";
import type { EmbedResponse__Output } from "./generated/winnow/embed/v1/EmbedResponse.js";
import type { SearchResponse__Output } from "./generated/winnow/retrieval/v1/SearchResponse.js";

const protos = fileURLToPath(new URL("../../../protos", import.meta.url));
const definition = loadSync(["winnow/retrieval/v1/retrieval.proto", "winnow/embed/v1/embed.proto"], {
  includeDirs: [protos],
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { winnow } = loadPackageDefinition(definition) as unknown as RetrievalTypes & EmbedTypes;

const address = process.env.WINNOW_ADDRESS ?? "localhost:50050";
// Without the option, gRPC goes through http_proxy, which leads to the internet and seldom to a gateway.
const options = { "grpc.enable_http_proxy": 0 };
const retrieval = new winnow.retrieval.v1.RetrievalService(address, credentials.createInsecure(), options);
const embed = new winnow.embed.v1.EmbedService(address, credentials.createInsecure(), options);
const deadline = (): Date => new Date(Date.now() + 10_000);

// The generated clients take callbacks; this turns one call into a promise.
function call<T>(run: (done: (error: ServiceError | null, answer?: T) => void) => void): Promise<T> {
  return new Promise((resolve, reject) => run((error, answer) => (error ? reject(error) : resolve(answer!))));
}

const texts = [
  "shutil.rmtree removes a whole directory tree",
  "os.remove deletes one file",
  "math.gcd is the greatest common divisor",
];
const found = await call<SearchResponse__Output>((done) =>
  retrieval.search(
    { query: "delete a directory tree", documents: { documents: texts.map((text) => ({ text })) }, topN: 2 },
    { deadline: deadline() },
    done,
  ),
);
for (const hit of found.hits) {
  console.log(`${hit.score.toFixed(4)}  #${hit.retrievalRank}  ${hit.text}`);
}

// Vectors travel as little-endian bytes. Buffer.from copies them to an aligned place, which Float32Array needs.
const embedded = await call<EmbedResponse__Output>((done) =>
  embed.embed({ texts, inputType: "INPUT_TYPE_DOCUMENT", dimensions: 64 }, { deadline: deadline() }, done),
);
for (const { embedding } of embedded.results) {
  const bytes = Buffer.from(embedding!.data!);
  const vector = new Float32Array(bytes.buffer, bytes.byteOffset, embedding!.dimensions);
  console.log(`${vector.length} dimensions, length ${Math.hypot(...vector).toFixed(4)}`);
}

// An error names the field and says what to do.
try {
  await call((done) => embed.embed({ texts: [] }, { deadline: deadline() }, done));
} catch (error) {
  console.log((error as ServiceError).details);
}
retrieval.close();
embed.close();
