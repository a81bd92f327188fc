// Loaded into every Node process of a test, by NODE_OPTIONS: its connections go to the wire.
//
// http, https, fetch (undici), WebSocket and the ws package all connect by way of net.Socket's
// connect(), TLS included. Only where a connection leads is changed: the name that TLS asks for and
// the Host header stay, and by these the wire knows who is meant. What is local, and what the test
// lets through, is left alone. emulator/network/nodejs_entrance.py sets the variables.

"use strict";

const children = require("node:child_process");
const dns = require("node:dns");
const fs = require("node:fs");
const net = require("node:net");
const tls = require("node:tls");
const workers = require("node:worker_threads");

if (!process.env.FAL_EMULATOR_WIRE) {
  throw new Error(
    "NODE_OPTIONS has pytest-fal's preload script, but FAL_EMULATOR_WIRE is not set, so this " +
      "process would reach the real network. Start it with the whole environment: " +
      'subprocess.run(["node", ...], env={**os.environ, "MINE": "1"})',
  );
}

const WIRE_PORT = Number(process.env.FAL_EMULATOR_WIRE);
const ALLOWED = new Set((process.env.FAL_EMULATOR_ALLOWED_HOSTS || "").split(",").filter(Boolean));
// As in Python: globally routable in the eyes of who looks, and unused since RFC 7526.
const EMULATED_ADDRESS = "192.88.99.1";
// The kernel numbers namespaces from here on.
const FIRST_NAMESPACE = 0xf0000000;

// Addresses of hosts that the test lets through, as far as this process has looked them up.
const realAddresses = new Set();

function isLocal(host) {
  if (host === "" || host === "localhost" || host.endsWith(".localhost")) return true;
  if (net.isIPv4(host)) return host.startsWith("127.") || host === "0.0.0.0";
  if (!net.isIPv6(host)) return false;
  return /^(::ffff:127\.[\d.]+|::1|::)$/i.test(host.split("%")[0]);
}

function isReal(name) {
  const host = String(name).toLowerCase().replace(/\.$/, "");
  return isLocal(host) || ALLOWED.has(host) || realAddresses.has(host);
}

// A source address of 127.0.0.0/8 tells the wire in which mount namespace, that is on which runner,
// this process is: nothing can be sent before TLS begins.
function sourceAddress() {
  try {
    const told = process.env.FAL_EMULATOR_RUNNER; // where there are no namespaces
    if (told && process.platform !== "linux") return undefined; // it has no 127.0.0.2
    const found = told ? parseInt(told) : fs.statSync("/proc/self/ns/mnt").ino;
    const number = found - FIRST_NAMESPACE;
    if (number < 2 || number > 0xfffffe) return undefined;
    return `127.${number >> 16}.${(number >> 8) & 255}.${number & 255}`;
  } catch {
    return undefined; // not Linux
  }
}

// The options of a connection by host and port; undefined for pipes, which have a path.
function optionsOf(args) {
  const [first, second] = Array.isArray(args[0]) ? args[0] : args;
  if (typeof first === "object" && first !== null) return first.path ? undefined : first;
  return typeof second === "string" ? { port: first, host: second } : undefined;
}

const connect = net.Socket.prototype.connect;

net.Socket.prototype.connect = function (...args) {
  const options = optionsOf(args);
  if (!options?.host || isReal(options.host)) return connect.apply(this, args);
  // https sends the name itself; of tls.connect() it would have to be asked for.
  if (this instanceof tls.TLSSocket && !options.servername) this.setServername(options.host);
  const given = Array.isArray(args[0]) ? args[0] : args;
  const callbacks = given.filter((argument) => typeof argument === "function");
  const wire = { host: "127.0.0.1", port: WIRE_PORT, localAddress: sourceAddress() };
  return connect.call(this, { ...options, ...wire, localPort: undefined }, ...callbacks);
};

// --- looking names up ---------------------------------------------------------------------------

function answer(options) {
  const entry = { address: EMULATED_ADDRESS, family: 4 };
  return options?.all ? [entry] : entry;
}

function remember(found) {
  for (const { address } of [found].flat()) realAddresses.add(address.toLowerCase());
  return found;
}

// Addresses, and what net itself looks up, are answered as always.
const isAsked = (name) => Boolean(name) && !net.isIP(name) && !isReal(name);

const lookup = dns.lookup;

dns.lookup = function (name, options, callback = options) {
  if (typeof callback !== "function") return lookup(name, options, callback); // says what is wrong
  if (!isAsked(name)) {
    return lookup(name, options === callback ? {} : options, (error, found, family) => {
      if (!error) remember(typeof found === "string" ? { address: found } : found);
      callback(error, found, family);
    });
  }
  const found = answer(typeof options === "object" ? options : undefined);
  process.nextTick(() =>
    Array.isArray(found) ? callback(null, found) : callback(null, found.address, found.family),
  );
  return undefined;
};

const lookupPromise = dns.promises.lookup;

dns.promises.lookup = async function (name, options) {
  if (isAsked(name)) return answer(typeof options === "object" ? options : undefined);
  return remember(await lookupPromise(name, options));
};

// --- children and workers with an environment of their own ---------------------------------------

const PRELOAD = `--require "${__filename.replace(/[\\"]/g, "\\$&")}"`;
const NAMES = ["FAL_EMULATOR_WIRE", "FAL_EMULATOR_ALLOWED_HOSTS", "NODE_EXTRA_CA_CERTS"];
const OURS = Object.fromEntries(
  NAMES.filter((name) => name in process.env).map((name) => [name, process.env[name]]),
);

// What is started with this environment finds the emulation, too.
function inside(env) {
  const given = env.NODE_OPTIONS || "";
  const options = given.includes(PRELOAD) ? given : `${given} ${PRELOAD}`.trim();
  return { ...OURS, ...env, NODE_OPTIONS: options };
}

// SHARE_ENV is a symbol, and no env is that of this process.
const hasEnv = (options) => typeof options?.env === "object" && options.env !== null;
const withOurs = (options) => (hasEnv(options) ? { ...options, env: inside(options.env) } : options);

workers.Worker = class Worker extends workers.Worker {
  constructor(file, options) {
    super(file, withOurs(options));
  }
};

// spawn, exec, execFile and fork all end here.
const spawn = children.ChildProcess.prototype.spawn;

children.ChildProcess.prototype.spawn = function (options) {
  if (!Array.isArray(options?.envPairs)) return spawn.call(this, options);
  const env = Object.fromEntries(options.envPairs.map((pair) => pair.split(/=(.*)/s, 2)));
  const envPairs = Object.entries(inside(env)).map(([name, value]) => `${name}=${value}`);
  return spawn.call(this, { ...options, envPairs });
};

for (const name of ["spawnSync", "execSync", "execFileSync"]) {
  const run = children[name];
  children[name] = (...args) =>
    run(...args.map((argument) => (Array.isArray(argument) ? argument : withOurs(argument))));
}
