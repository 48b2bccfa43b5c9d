// Reads AsyncAPI documents with the official parser: node parse.cjs FILE...
// Any diagnostic but an "information" or a "hint" fails.
const fs = require("node:fs");
const { Parser, DiagnosticSeverity } = require("@asyncapi/parser");

async function faultsOf(file) {
  const { document, diagnostics } = await new Parser().parse(fs.readFileSync(file, "utf-8"));
  const faults = diagnostics
    .filter((one) => one.severity <= DiagnosticSeverity.Warning)
    .map((one) => `${file}: ${one.path.join(".")}: ${one.message} (${one.code})`);
  if (document === undefined) {
    return faults.length > 0 ? faults : [`${file}: no document`];
  }
  const operations = document.operations().all();
  console.log(`${file}: ${document.channels().all().length} channels, ${operations.length} operations`);
  return faults;
}

(async () => {
  const faults = (await Promise.all(process.argv.slice(2).map(faultsOf))).flat();
  faults.forEach((fault) => console.error(fault));
  process.exitCode = faults.length > 0 || process.argv.length < 3 ? 1 : 0;
})();
