// The admin API: every request the page makes goes through here.

import { secret } from "./secret.js";

/** Longest wait for something that is only shown, in milliseconds. */
const PATIENCE_MS = 8000;

/** What the node said, or that it said nothing. */
export class ApiError extends Error {
  /** `kind` is the node's, or `NoAnswer`, or `NoSecret`. */
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

async function ask(method, path, body, patience) {
  const options = { method, cache: "no-store", credentials: "omit", redirect: "error" };
  options.headers = {};
  if (secret()) options.headers.Authorization = `Bearer ${secret()}`;
  if (patience) options.signal = AbortSignal.timeout(patience);
  if (method !== "GET") {
    options.headers["Content-Type"] = "application/json";
    if (body !== undefined) options.body = JSON.stringify(body);
  }
  let response, text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch (error) {
    throw new ApiError("NoAnswer", error.name === "TimeoutError" ? `no answer within ${patience / 1000} s` : "the node does not answer");
  }
  if (response.status === 401) {
    throw new ApiError("NoSecret", "the node does not know who asks");
  }
  if (response.ok) {
    return text === "" ? null : JSON.parse(text);
  }
  try {
    const failure = JSON.parse(text);
    throw new ApiError(failure.kind, failure.message);
  } catch (error) {
    throw error instanceof ApiError ? error : new ApiError("Internal", `the node answered ${response.status}: ${text.slice(0, 200)}`);
  }
}

/** What is shown. */
export const get = (path) => ask("GET", path, undefined, PATIENCE_MS);

/** What changes something: waits until it is done, however long that takes. */
export const post = (path, body) => ask("POST", path, body);

/** What takes something back. */
export const remove = (path) => ask("DELETE", path);

/** The path of a volume, and of what belongs to it. */
export const ofVolume = (name, rest = "") => `/v1/volumes/${encodeURIComponent(name)}${rest}`;
