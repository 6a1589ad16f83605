import { Bar } from "./Bar.tsx";
import { bytes, seconds, whole } from "./format.ts";
import { Section, TableBox } from "./Section.tsx";
import type { ImagesSnapshot } from "./types.ts";

/** The image cache: what is in it, without any picture. */
export function Images({ images }: { images: ImagesSnapshot }) {
  const { items, capacity, size, most_size, leased, waiting, working, rows, more } = images;
  return (
    <Section id="live-images" title="Image cache" aside={`${whole(items)} of ${whole(capacity)} images, ${whole(leased)} in use`}>
      <p class="live-bar-cell live-wide">
        <Bar parts={[{ share: size / Math.max(most_size, 1), kind: "2" }]} />
        <span>{bytes(size)} of {bytes(most_size)}</span>
      </p>
      {(working > 0 || waiting > 0) && (
        <p class="live-soft">{whole(working)} being encoded, {whole(waiting)} {waiting === 1 ? "request waits" : "requests wait"} for room.</p>
      )}
      {rows.length === 0 ? (
        <p class="live-empty">No image is cached.</p>
      ) : (
        <TableBox label="Cached images">
          <table class="live-table">
            <thead>
              <tr>
                <th scope="col">Key</th>
                <th scope="col">State</th>
                <th scope="col" class="number">Tokens</th>
                <th scope="col" class="number">Size</th>
                <th scope="col" class="number">Leases</th>
                <th scope="col" class="number">Age</th>
              </tr>
            </thead>
            <tbody>
              {rows.map((image, index) => (
                <tr key={`${image.key}-${index}`}>
                  <th scope="row"><code>{image.key}…</code></th>
                  <td>{image.ready ? "ready" : "being encoded"}</td>
                  <td class="number">{whole(image.tokens)}</td>
                  <td class="number">{bytes(image.size)}</td>
                  <td class="number">{whole(image.leases)}</td>
                  <td class="number">{seconds(image.age)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </TableBox>
      )}
      {more > 0 && <p class="live-empty">{whole(more)} older ones are not shown.</p>}
    </Section>
  );
}
